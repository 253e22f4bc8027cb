"""What the chart ships is what the operator understands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from agentserving_operator.__main__ import parse as parse_flags
from agentserving_operator.cluster import CHILD_KINDS, PATHS
from agentserving_operator.crd import API_VERSION, KIND
from agentserving_operator.parsing import parse
from agentserving_operator.spec import ClusterSpec

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/agentserving"


def rules() -> set[tuple[str, str, str]]:
    found = yaml.safe_load((CHART / "files/operator-rules.yaml").read_text())
    return {(g, r, v) for rule in found for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("cluster-*.yaml")), ids=lambda path: path.name)
def test_examples_are_clusters(path: Path) -> None:
    found = yaml.safe_load(path.read_text())
    assert (found["apiVersion"], found["kind"], found["metadata"]["name"]) == (API_VERSION, KIND, "demo")
    parse(ClusterSpec, found["spec"])


def test_the_notes_show_the_example() -> None:
    name = "cluster-simulator.yaml"
    assert (CHART / "files" / name).read_text() == (ROOT / "examples" / name).read_text()
    notes = (CHART / "templates/NOTES.txt").read_text()
    assert "kubectl wait --for=condition=Ready asc/demo --timeout=5m" in notes
    assert f"kubectl apply -f examples/{name}" in notes


def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def test_values_are_ones_that_their_schema_takes_and_it_knows_no_others() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.validate(values(), schema)
    assert set(schema["properties"]) - {"global"} == set(values())


@pytest.mark.parametrize(
    "wrong", [{"image": {"repository": "a", "tag": "latest"}}, {"roundSeconds": 0}, {"namespace": "x"}]
)
def test_values_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values(), **wrong}, schema)


def test_the_operator_may_write_every_kind_that_it_makes() -> None:
    for kind in CHILD_KINDS:
        prefix, plural = PATHS[kind]
        group = prefix.split("/")[2] if prefix.startswith("/apis/") else ""
        assert {(group, plural, verb) for verb in ("get", "list", "create", "patch", "delete")} <= rules()


def test_no_right_is_a_wildcard_and_secrets_are_never_listed() -> None:
    assert not [rule for rule in rules() if "*" in rule]
    assert {verb for _, resource, verb in rules() if resource == "secrets"} == {"get", "create"}


def test_the_deployment_sets_variables_that_the_operator_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (CHART / "templates/deployment.yaml").read_text().splitlines()
    names = [line.split("name: ")[1] for line in lines if "name: AGENTSERVING_OPERATOR_" in line]
    assert len(names) == 7
    for name in names:
        monkeypatch.setenv(name, "41")
    given = vars(parse_flags([]))
    for name in names:
        assert given[name.removeprefix("AGENTSERVING_OPERATOR_").lower()] in ("41", 41.0), name
