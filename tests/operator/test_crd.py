"""The CRD follows the API conventions in every field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from agentserving_operator.spec import crd
from agentserving_operator.spec.fields import integer, items, text
from agentserving_operator.spec.schema import UnboundedFieldError, object_schema

FILES = Path(__file__).parents[2] / "charts/agentserving/files"


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from nodes(each, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from nodes(schema[name], f"{path}[]")


def whole() -> list[tuple[str, dict[str, Any]]]:
    """All fields, the clusters' before the tenants'."""
    roots = [version["schema"]["openAPIV3Schema"]["properties"] for version in (crd.version(), crd.tenant_version())]
    return [found for root in roots for part in ("spec", "status") for found in nodes(root[part], part)]


def test_every_string_number_and_list_is_bounded() -> None:
    for path, node in whole():
        if node.get("type", "string") == "string":
            assert "enum" in node or "maxLength" in node, path
        if node.get("type") == "integer":
            assert "minimum" in node, path
            assert "maximum" in node, path
        if node.get("type") == "array":
            assert node["x-kubernetes-list-type"] in ("atomic", "set", "map"), path
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


def test_every_field_is_described_and_none_is_a_float() -> None:
    for path, node in whole():
        kinds = ("object", "string", "integer", "array", "boolean")
        assert node.get("x-kubernetes-int-or-string") or node["type"] in kinds, path
        assert node.get("description") or path.endswith("[]"), path


def test_every_rule_has_a_message_and_names_an_existing_field() -> None:
    rules = [(node, rule) for _, node in whole() for rule in node.get("x-kubernetes-validations", [])]
    assert len(rules) > 15
    for node, rule in rules:
        assert rule["message"]
        at = node
        for step in filter(None, rule.get("fieldPath", ".").split(".")):
            at = at["properties"][step]


def test_conditions_are_a_map_by_type() -> None:
    conditions = dict(whole())["status.conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_status_has_no_defaults() -> None:
    assert not [path for path, node in whole() if path.startswith("status") and "default" in node]


def test_columns_and_scale_point_at_fields_that_exist() -> None:
    version = crd.version()
    known = {f".{path}" for path, _ in whole()}
    assert [column["name"] for column in version["additionalPrinterColumns"]] == [
        "Ready", "Reason", "URL", "Policy", "Engines", "Programs", "Age",
    ]  # fmt: skip
    plain_paths = [c["jsonPath"] for c in version["additionalPrinterColumns"] if "[" not in c["jsonPath"]]
    scale = version["subresources"]["scale"]
    assert {*plain_paths, *scale.values()} - {".metadata.creationTimestamp"} <= known


@pytest.mark.parametrize("plural", [crd.PLURAL, crd.TENANT_PLURAL])
def test_both_versions_are_served_with_one_schema_and_the_older_is_stored(plural: str) -> None:
    spec = crd.definitions()[plural]["spec"]
    old, new = spec["versions"]
    assert [old["name"], new["name"], spec["conversion"]] == ["v1alpha1", "v1beta1", {"strategy": "None"}]
    assert [(each.pop("served"), each.pop("storage")) for each in (old, new)] == [(True, True), (True, False)]
    assert {**new, "name": ""} == {**old, "name": ""}


def test_kubectl_apply_can_annotate_them() -> None:
    """It writes the object into an annotation; 262,144 bytes is the API server's limit of all annotations."""
    for definition in crd.definitions().values():
        assert len(json.dumps(definition, separators=(",", ":"))) < 250_000


def test_the_committed_file_is_what_is_generated() -> None:
    assert {path.stem for path in FILES.glob("agentserving*.yaml")} == set(crd.definitions())
    for plural, definition in crd.definitions().items():
        text = (FILES / f"{plural}.yaml").read_text()
        assert yaml.safe_load(text) == definition
        assert text == crd.HEADER + crd.to_yaml(definition)


@dataclass(frozen=True)
class UnboundedText:
    """A field without a bound."""

    value: str = text("x", None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class UnboundedNumber:
    """A field without a bound."""

    value: int = integer("x", None, 1)  # type: ignore[arg-type]


@dataclass(frozen=True)
class UnboundedList:
    """A field without a bound."""

    value: tuple[str, ...] = items("x", None, max_length=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [UnboundedText, UnboundedNumber, UnboundedList])
def test_a_field_without_a_bound_is_refused(cls: type) -> None:
    with pytest.raises(UnboundedFieldError, match=r"Unbounded\w+.value"):
        object_schema(cls)
