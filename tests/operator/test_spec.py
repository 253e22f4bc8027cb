"""Parsing applies the same defaults as the CRD's schema, and names an invalid field."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving.contract import policy as values
from agentserving_operator.spec import crd
from agentserving_operator.spec.accelerator import A100_PRODUCTS
from agentserving_operator.spec.cluster import ClusterSpec
from agentserving_operator.spec.parsing import SpecError, parse, plain
from agentserving_operator.spec.scheduling import PolicyName, to_policy
from agentserving_operator.spec.store import StoreType
from support.spec_samples import INVALID, MINIMAL, VALID


def with_defaults(schema: dict[str, Any], value: Any) -> Any:
    """What the API server stores: the object with the schema's defaults (structural defaulting)."""
    if schema.get("type") == "object" and "properties" in schema:
        filled = dict(value)
        for name, each in schema["properties"].items():
            if name not in filled and "default" in each:
                filled[name] = each["default"]
            if name in filled:
                filled[name] = with_defaults(each, filled[name])
        return filled
    if schema.get("type") == "array":
        return [with_defaults(schema["items"], each) for each in value]
    return value


def spec_schema() -> dict[str, Any]:
    schema: dict[str, Any] = crd.version()["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


@pytest.mark.parametrize("given", VALID)
def test_parsing_gives_the_defaults_that_the_api_server_gives(given: dict[str, Any]) -> None:
    assert plain(parse(ClusterSpec, given)) == with_defaults(spec_schema(), given)


def test_a_spec_survives_a_round_trip() -> None:
    spec = parse(ClusterSpec, MINIMAL)
    assert parse(ClusterSpec, plain(spec)) == spec


def test_engines_run_on_a100_by_default() -> None:
    accelerator = parse(ClusterSpec, MINIMAL).engine.accelerator
    assert accelerator.products == A100_PRODUCTS
    assert accelerator.resource_name == "nvidia.com/gpu"


@pytest.mark.parametrize(("given", "field", "words"), INVALID)
def test_an_error_names_the_field_and_what_to_do(given: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(ClusterSpec, given)
    assert caught.value.field == field
    assert words in caught.value.message


def level(bound: int, quantum: int = 1) -> dict[str, int]:
    return {"upperBoundMilliseconds": bound, "quantumMilliseconds": quantum}


@pytest.mark.parametrize(("bounds", "words"), [((2, 1), "ascending"), ((1, 1), "twice")])
def test_levels_ascend(bounds: tuple[int, ...], words: str) -> None:
    custom = {"levels": [level(bound) for bound in bounds]}
    with pytest.raises(SpecError, match=words):
        parse(ClusterSpec, {**MINIMAL, "scheduling": {"policy": "custom", "custom": custom}})


@pytest.mark.parametrize("name", list(values.PRESETS))
def test_every_preset_of_the_engines_can_be_chosen(name: str) -> None:
    spec = parse(ClusterSpec, {**MINIMAL, "scheduling": {"policy": name}})
    assert to_policy(spec.scheduling) is values.PRESETS[name]


def test_no_preset_is_unknown_to_the_engines() -> None:
    assert {each.value for each in PolicyName} == {*values.PRESETS, "custom"}


def test_a_custom_policy_becomes_the_value_that_engines_execute() -> None:
    custom = {
        "accounting": "Sum",
        "levels": [level(250, 250), level(1000, 750)],
        "betaMilli": 20000,
        "unmanagedLevel": 2,
    }
    spec = parse(ClusterSpec, {**MINIMAL, "scheduling": {"policy": "custom", "custom": custom}})
    policy = to_policy(spec.scheduling)
    assert policy.levels == (values.Level(250_000, 250_000), values.Level(1_000_000, 750_000), values.Level())
    assert policy.accounting is values.Accounting.SUM
    assert policy.beta_milli == 20_000
    assert policy.unmanaged_level == 2


def test_the_default_store_is_an_etcd_of_our_own() -> None:
    assert parse(ClusterSpec, MINIMAL).store.type is StoreType.ETCD
