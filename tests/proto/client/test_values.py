"""The values that clients answer with say what the messages of agentserving.v1 say."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import pytest
from agentserving.client import messages, values
from agentserving.contract.policy import PRESETS
from agentserving.contract.policy_message import policy_from, policy_to
from agentserving.v1 import admin_service_pb2, call_service_pb2, types_pb2

PAIRS: list[tuple[type[Any], Any]] = [
    (values.Program, types_pb2.Program),
    (values.Call, types_pb2.Call),
    (values.Thread, types_pb2.Thread),
    (values.Engine, types_pb2.Engine),
    (values.EngineLoad, types_pb2.EngineLoad),
    (values.EngineCapabilities, types_pb2.EngineCapabilities),
    (values.NamedEngine, call_service_pb2.NamedEngine),
    (values.Admission, call_service_pb2.AdmitCallResponse),
    (values.Overview, admin_service_pb2.GetOverviewResponse),
    (values.ProgramOrigin, call_service_pb2.ProgramOrigin),
    (values.EndedCall, call_service_pb2.EndedCall),
    (values.ClosedProgram, call_service_pb2.ClosedProgram),
    (values.Endings, call_service_pb2.WatchEndingsResponse),
]


@pytest.mark.parametrize(("value", "message"), PAIRS)
def test_a_value_has_the_fields_of_its_message(value: type[Any], message: Any) -> None:
    assert [field.name for field in fields(value)] == [field.name for field in message.DESCRIPTOR.fields]


@pytest.mark.parametrize(
    ("ours", "wire"),
    [
        (values.ProgramState, types_pb2.ProgramState),
        (values.Outcome, types_pb2.Outcome),
        (values.EngineState, types_pb2.EngineState),
        (values.Balancer, types_pb2.Balancer),
    ],
)
def test_an_enum_has_the_numbers_of_the_wire_and_takes_unknown_ones(ours: Any, wire: Any) -> None:
    prefix = next(iter(wire.keys())).removesuffix("UNSPECIFIED")
    assert {name.removeprefix(prefix): number for name, number in wire.items()} == {e.name: e.value for e in ours}
    assert ours(9999) is ours.UNSPECIFIED


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_policy_survives_the_wire(name: str) -> None:
    assert policy_from(policy_to(PRESETS[name])) == PRESETS[name]


def test_a_program_is_read_with_its_calls_and_instants() -> None:
    message = types_pb2.Program(program_id="p", state=types_pb2.PROGRAM_STATE_PAUSED, engine_ids=["e1", "e0"])
    message.open_time.FromMicroseconds(1_500_000)
    message.calls.add(call_id="p.1.0", running=True, parent_call_ids=["p.0.9"])
    found = messages.read(values.Program, message)
    assert (found.state, found.engine_ids) == (values.ProgramState.PAUSED, ("e1", "e0"))
    assert found.open_time == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert found.close_time is None
    assert (found.calls[0].running, found.calls[0].parent_call_ids) == (True, ("p.0.9",))
