"""Between the sidecar's values and the messages of the contract. Pure."""

from __future__ import annotations

from agentserving.contract.channel import (
    CallRecord,
    Cancel,
    Load,
    PolicyResult,
    ProgramEnded,
    SetAccounts,
    SetShares,
    ToolWait,
)
from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import InvalidPolicyError
from agentserving.contract.policy_message import policy_from
from agentserving.v1 import engine_service_pb2 as pb
from agentserving.v1 import types_pb2

from agentserving_sidecar.health import Health, State
from agentserving_sidecar.values import (
    Ack,
    Action,
    Directive,
    Drain,
    FromLeader,
    Hello,
    Pause,
    PolicyVersion,
    Report,
    ToLeader,
    Welcome,
)

_OUTCOMES = {
    "": types_pb2.OUTCOME_UNSPECIFIED,
    "completed": types_pb2.OUTCOME_COMPLETED,
    "cancelled": types_pb2.OUTCOME_CANCELLED,
    "failed": types_pb2.OUTCOME_FAILED,
}
_HEALTH = {
    State.SERVING: types_pb2.ENGINE_HEALTH_SERVING,
    State.LOADING: types_pb2.ENGINE_HEALTH_LOADING,
    State.STUCK: types_pb2.ENGINE_HEALTH_STUCK,
    State.DOWN: types_pb2.ENGINE_HEALTH_DOWN,
}
# Fields of the channel's Load have the names of EngineLoad's.
_LOAD_FIELDS = tuple(name for name in Load.__struct_fields__ if name in types_pb2.EngineLoad.DESCRIPTOR.fields_by_name)

# -- to the leader -------------------------------------------------------------------------------------------------


def attach_request(message: ToLeader) -> pb.AttachRequest:
    match message:
        case Hello():
            return pb.AttachRequest(hello=_hello(message))
        case Report():
            return pb.AttachRequest(report=_report(message))
        case PolicyResult():
            return pb.AttachRequest(policy_ack=pb.PolicyAck(version=message.version, error=message.error))


def _hello(hello: Hello) -> pb.EngineHello:
    engine = hello.engine
    capabilities = types_pb2.EngineCapabilities(models=hello.models)
    if engine is not None:
        for name in (
            "engine_kind", "engine_version", "plugin_version", "max_num_seqs", "max_model_len", "block_size",
            "num_blocks", "data_parallel_size", "async_scheduling", "retention_obstacle", "working_set_obstacle",
        ):  # fmt: skip
            setattr(capabilities, name, getattr(engine, name))
    return pb.EngineHello(
        engine_id=hello.engine_id,
        boot_id=engine.boot_id if engine is not None else "",
        address=hello.engine_address,
        sidecar_address=hello.sidecar_address,
        capabilities=capabilities,
        epoch=hello.epoch,
        draining=hello.draining,
        unacked_seq=hello.unacked_seq,
        health=_HEALTH[hello.health.state],
        health_reason=hello.health.reason,
    )


def _report(report: Report) -> pb.Report:
    health: Health = report.health
    return pb.Report(
        seq=report.seq,
        load=load_message(report.load) if report.load is not None else None,
        calls=[call_report(record, boot_id) for boot_id, record in report.calls],
        # For leaders that do not know `health`: to them, STUCK is the state that gets no calls.
        stuck=not health.is_serving,
        engine_down=report.engine_down,
        boot_id=report.boot_id,
        health=_HEALTH[health.state],
        health_reason=health.reason,
    )


def call_report(record: CallRecord, boot_id: str) -> pb.CallReport:
    return pb.CallReport(
        call_id=record.call_id,
        attempt=record.attempt,
        program_id=record.program_id,
        root_program_id=record.root_program_id,
        tenant=record.tenant,
        thread_id=record.thread_id,
        attained_service_us=record.attained_service_us,
        service_us=record.service_us,
        wait_us=record.wait_us,
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        output_tokens=record.output_tokens,
        preemptions=record.preemptions,
        level=record.level,
        running=record.running,
        outcome=_OUTCOMES.get(record.outcome, types_pb2.OUTCOME_FAILED),
        boot_id=boot_id,
        engine_ids=record.engine_ids,
        phases=[
            types_pb2.Phase(kind=types_pb2.PhaseKind.ValueType(kind), duration_us=us) for kind, us in record.phases
        ],
        prefix_miss=types_pb2.PrefixMiss.ValueType(record.prefix_miss),
        common_tokens=record.common_tokens,
        arrive_unix_us=record.arrive_unix_us,
    )


def load_message(load: Load) -> types_pb2.EngineLoad:
    return types_pb2.EngineLoad(**{name: getattr(load, name) for name in _LOAD_FIELDS})


# -- from the leader -----------------------------------------------------------------------------------------------


def from_leader(response: pb.AttachResponse) -> FromLeader | None:
    """A message of the leader; None for a kind that this version does not know."""
    match response.WhichOneof("message"):
        case "welcome":
            return _welcome(response.welcome)
        case "directive":
            return _directive(response.directive)
        case "ack":
            return Ack(response.ack.seq)
        case _:
            return None


def _welcome(welcome: pb.Welcome) -> Welcome:
    return Welcome(
        epoch=welcome.epoch,
        policy=_policy(welcome.policy),
        paused=frozenset(_key(each.tenant, each.program_id) for each in welcome.paused),
        shares=_shares(welcome.shares),
    )


def _directive(directive: pb.Directive) -> Directive:
    return Directive(directive.epoch, _action(directive))


def _action(directive: pb.Directive) -> Action:
    match directive.WhichOneof("directive"):
        case "accounts":
            return SetAccounts(
                [(a.tenant, a.root_program_id, a.attained_service_us, a.wait_us) for a in directive.accounts.accounts]
            )
        case "policy":
            return _policy(directive.policy)
        case "pause":
            return Pause(_key(directive.pause.tenant, directive.pause.program_id), directive.pause.paused)
        case "cancel":
            return Cancel(list(directive.cancel.call_ids))
        case "drain":
            return Drain()
        case "tool_wait":
            wait = directive.tool_wait
            return ToolWait(
                tenant=wait.tenant,
                root_program_id=wait.root_program_id,
                program_id=wait.program_id,
                thread_id=wait.thread_id,
                waiting=wait.waiting,
                expected_us=wait.expected_us,
            )
        case "program_ended":
            return ProgramEnded(directive.program_ended.tenant, directive.program_ended.root_program_id)
        case "shares":
            return _shares(directive.shares)
        case _:
            return None


def _shares(message: pb.TenantShares) -> SetShares:
    return SetShares([(share.tenant, share.weight) for share in message.shares])


def _key(tenant: str, program_id: str) -> ProgramKey:
    return ProgramKey(Tenant(tenant), ProgramId(program_id))


def _policy(message: types_pb2.PolicyVersion) -> PolicyVersion:
    name = message.policy.name
    try:
        return PolicyVersion(version=message.version, name=name, policy=policy_from(message.policy))
    except InvalidPolicyError as error:
        return PolicyVersion(version=message.version, name=name, policy=None, error=str(error))
