"""The condition that says what engines leave out of the policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agentserving_operator.observe.overview import EngineState, EngineView, Overview
from agentserving_operator.observe.policy_in_force import policy_in_force

OVERVIEW = Overview(
    programs=7, policy_name="auto", policy_version=4, policy_generation=3, pending_engines=0, store_healthy=True,
    store_message="",
)  # fmt: skip


def with_engines(
    retention: str = "", working_set: str = "", *, retains: bool = False, bounds: bool = False
) -> Overview:
    """The second of two engines has these obstacles."""
    engines = (
        EngineView("demo-engine-0", EngineState.READY),
        EngineView("demo-engine-1", EngineState.READY, "", retention, working_set),
    )
    return replace(OVERVIEW, engines=engines, retains=retains, bounds=bounds)


@pytest.mark.parametrize(
    ("overview", "found"),
    [
        (with_engines(retains=True), ("True", "InForce")),
        (with_engines("kv_layout", retains=True), ("False", "RetentionOff")),
        (with_engines("of_a_later_release", retains=True), ("False", "RetentionOff")),
        # What the connector loads is not lost.
        (with_engines("kv_connector", retains=True), ("True", "InForce")),
        (with_engines("kv_layout"), ("True", "InForce")),
        # A bounded working set takes the place of retention.
        (with_engines("kv_connector", retains=True, bounds=True), ("True", "InForce")),
        (with_engines("", "sliding_windows", bounds=True), ("False", "WorkingSetOff")),
        (replace(OVERVIEW, pending_engines=1), ("False", "PolicyPending")),
        (None, ("Unknown", "NotReachable")),
    ],
)
def test_it_names_the_engine_and_the_part_that_it_leaves_out(overview: Overview | None, found: tuple[str, str]) -> None:
    finding = policy_in_force(overview)
    assert (finding.status.value, finding.reason.value) == found
    if found[1].endswith("Off"):
        assert finding.message.startswith("demo-engine-1: ")
