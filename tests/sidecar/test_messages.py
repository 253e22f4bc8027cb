"""Values of the sidecar as messages of the contract, and back."""

from __future__ import annotations

import msgspec
import pytest
from agentserving.contract.channel import (
    CallRecord,
    Cancel,
    EngineHello,
    Load,
    PolicyResult,
    ProgramEnded,
    SetAccounts,
    SetShares,
    ToolWait,
)
from agentserving.contract.ids import EngineId, ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import preset
from agentserving.contract.policy_message import policy_to
from agentserving.v1 import engine_service_pb2 as pb
from agentserving.v1 import types_pb2
from agentserving_sidecar.api.messages import attach_request, call_report, from_leader, load_message
from agentserving_sidecar.health import Health, State
from agentserving_sidecar.values import Ack, Directive, Drain, Hello, Pause, Report, Welcome

ACME_X = ProgramKey(Tenant("acme"), ProgramId("x"))
GLOBEX_X = ProgramKey(Tenant("globex"), ProgramId("x"))


def record(**more: object) -> CallRecord:
    return CallRecord(
        call_id="p.1.0", attempt=1, program_id="p", root_program_id="p", tenant="default", thread_id="",
        attained_service_us=5, **more,
    )  # type: ignore[arg-type] # fmt: skip


def engine() -> EngineHello:
    return EngineHello(
        boot_id="b1", pid=1, engine_kind="VLLM", engine_version="0.32", plugin_version="1", max_num_seqs=8,
        max_model_len=8192, block_size=16, num_blocks=1000, data_parallel_size=1, async_scheduling=True,
        policy_version=3, retention_obstacle="kv_layout", working_set_obstacle="sliding_windows",
    )  # fmt: skip


def hello(engine: EngineHello | None, health: Health) -> pb.EngineHello:
    message = Hello(
        engine_id=EngineId("e1"), engine_address="h:8000", sidecar_address="h:7071", engine=engine, models=("m", "a"),
        health=health, epoch=4, draining=True, unacked_seq=9,
    )  # fmt: skip
    return attach_request(message).hello


def test_a_load_is_passed_on_field_by_field() -> None:
    values = dict(zip(Load.__struct_fields__, range(1, 1 + len(Load.__struct_fields__)), strict=True))
    message = load_message(Load(**values))  # type: ignore[arg-type]
    assert {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields} == {
        name: value for name, value in values.items() if name in message.DESCRIPTOR.fields_by_name
    }
    assert message.prefill_us_per_token > 0


def test_a_record_is_passed_on_field_by_field_with_its_boot() -> None:
    sent = record(service_us=7, wait_us=8, prompt_tokens=9, cached_tokens=10, output_tokens=11, preemptions=12,
                  level=2, running=True, outcome="completed", engine_ids=("e1", "e2"))  # fmt: skip
    message = call_report(msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=CallRecord), "boot")
    assert message.boot_id == "boot"
    assert message.outcome == types_pb2.OUTCOME_COMPLETED
    for name in CallRecord.__struct_fields__:
        expected = getattr(sent, name)
        found = getattr(message, name)
        assert name == "outcome" or (tuple(found) if isinstance(expected, tuple) else found) == expected, name


def test_an_engine_that_has_not_booted_introduces_itself_without_a_boot() -> None:
    message = hello(None, Health(State.LOADING, "it is starting"))
    assert (message.engine_id, message.boot_id, message.address) == ("e1", "", "h:8000")
    assert message.health == types_pb2.ENGINE_HEALTH_LOADING
    assert message.health_reason == "it is starting"


def test_an_engine_introduces_itself_with_its_boot_its_models_and_its_health() -> None:
    message = hello(engine(), Health(State.SERVING))
    assert (message.boot_id, message.epoch, message.draining, message.unacked_seq) == ("b1", 4, True, 9)
    assert message.health == types_pb2.ENGINE_HEALTH_SERVING
    capabilities = message.capabilities
    assert list(capabilities.models) == ["m", "a"]
    assert (capabilities.engine_kind, capabilities.engine_version, capabilities.plugin_version) == ("VLLM", "0.32", "1")
    assert (capabilities.max_num_seqs, capabilities.max_model_len) == (8, 8192)
    assert (capabilities.retention_obstacle, capabilities.working_set_obstacle) == ("kv_layout", "sliding_windows")
    assert (capabilities.block_size, capabilities.num_blocks, capabilities.data_parallel_size) == (16, 1000, 1)
    assert capabilities.async_scheduling


@pytest.mark.parametrize(
    ("state", "health", "stuck"),
    [
        (State.SERVING, types_pb2.ENGINE_HEALTH_SERVING, False),
        (State.LOADING, types_pb2.ENGINE_HEALTH_LOADING, True),
        (State.STUCK, types_pb2.ENGINE_HEALTH_STUCK, True),
        (State.DOWN, types_pb2.ENGINE_HEALTH_DOWN, True),
    ],
)
def test_a_leader_that_does_not_know_health_gives_no_calls_to_an_engine_that_does_not_serve(
    state: State, health: int, stuck: bool
) -> None:
    report = attach_request(Report(boot_id="b", health=Health(state, "why"))).report
    assert (report.health, report.health_reason, report.stuck) == (health, "why", stuck)


def test_a_report_names_the_boot_of_each_call() -> None:
    message = Report(boot_id="b2", health=Health(State.SERVING), seq=8, calls=(("b1", record()), ("b2", record())))
    report = attach_request(message).report
    assert (report.seq, report.boot_id, [call.boot_id for call in report.calls]) == (8, "b2", ["b1", "b2"])
    assert attach_request(PolicyResult(3, "no")).policy_ack == pb.PolicyAck(version=3, error="no")


def test_a_welcome_names_the_paused_programs_of_each_tenant() -> None:
    welcome = pb.Welcome(
        epoch=7,
        policy=types_pb2.PolicyVersion(version=2, policy=policy_to(preset("plas"))),
        paused=[pb.ProgramKey(tenant="acme", program_id="x"), pb.ProgramKey(tenant="globex", program_id="x")],
        shares=pb.TenantShares(shares=[pb.TenantShare(tenant="acme", weight=2)]),
    )
    message = from_leader(pb.AttachResponse(welcome=welcome))
    assert isinstance(message, Welcome)
    assert (message.epoch, message.paused) == (7, {ACME_X, GLOBEX_X})
    assert message.shares == SetShares([("acme", 2)])
    assert (message.policy.version, message.policy.policy) == (2, preset("plas"))


@pytest.mark.parametrize(
    ("directive", "action"),
    [
        (pb.Directive(accounts=pb.Accounts(accounts=[
            pb.ProgramAccount(tenant="acme", root_program_id="x", attained_service_us=1, wait_us=2)
        ])), SetAccounts([("acme", "x", 1, 2)])),
        (pb.Directive(pause=pb.PauseCalls(tenant="acme", program_id="x", paused=True)), Pause(ACME_X, True)),
        (pb.Directive(cancel=pb.CancelCalls(call_ids=["a", "b"])), Cancel(["a", "b"])),
        (pb.Directive(drain=pb.Drain()), Drain()),
        (pb.Directive(tool_wait=pb.ToolWait(
            tenant="acme", root_program_id="x", program_id="y", thread_id="t", waiting=True, expected_us=5
        )), ToolWait(
            tenant="acme", root_program_id="x", program_id="y", thread_id="t", waiting=True, expected_us=5
        )),
        (pb.Directive(shares=pb.TenantShares(shares=[pb.TenantShare(tenant="acme", weight=2)])),
            SetShares([("acme", 2)])),
        (pb.Directive(program_ended=pb.ProgramEnded(tenant="acme", root_program_id="x")), ProgramEnded("acme", "x")),
        (pb.Directive(), None),
    ],
)  # fmt: skip
def test_a_directive_is_an_action(directive: pb.Directive, action: object) -> None:
    directive.epoch = 3
    assert from_leader(pb.AttachResponse(directive=directive)) == Directive(3, action)  # type: ignore[arg-type]


def test_a_policy_that_this_version_cannot_read_is_an_error_and_no_exception() -> None:
    policy = types_pb2.PolicyVersion(version=9, policy=types_pb2.Policy(name="odd", beta_milli=5))
    message = from_leader(pb.AttachResponse(directive=pb.Directive(policy=policy)))
    assert isinstance(message, Directive)
    assert message.action is not None
    assert message.action.policy is None  # type: ignore[union-attr]
    assert message.action.error  # type: ignore[union-attr]


def test_messages_of_kinds_that_are_not_known_are_nothing() -> None:
    assert from_leader(pb.AttachResponse()) is None
    assert from_leader(pb.AttachResponse(ack=pb.Ack(seq=4))) == Ack(4)
