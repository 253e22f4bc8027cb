"""Between messages and values: what engines send, and what is sent to them. Pure."""

from __future__ import annotations

from operator import attrgetter

from agentserving.contract.ids import CallId, EngineId, ProgramId, ProgramKey, Tenant
from agentserving.v1 import admin_service_pb2, engine_service_pb2, types_pb2

from agentserving_controlplane.api.conversion import outcome, policy_version_to_message
from agentserving_controlplane.engine_sessions import EngineHello, EngineReport
from agentserving_controlplane.engines import directives
from agentserving_controlplane.engines.engine import Engine
from agentserving_controlplane.engines.facts import Capabilities, Load
from agentserving_controlplane.engines.health import Health
from agentserving_controlplane.engines.sizing import Demand
from agentserving_controlplane.table.reports import CallReport

_HEALTH = frozenset(map(int, Health))
_LOAD_FIELDS = Load.__struct_fields__
_load_values = attrgetter(*_LOAD_FIELDS)
_CAPABILITY_FIELDS = tuple(name for name in Capabilities.__dataclass_fields__ if name != "models")


def health(number: int, stuck: bool) -> Health:
    """Health as reported; senders that do not know it set only `stuck`."""
    if number == Health.UNSPECIFIED or number not in _HEALTH:
        return Health.STUCK if stuck else Health.SERVING
    return Health(number)


def engine_hello(hello: engine_service_pb2.EngineHello) -> EngineHello:
    """First message of a sidecar."""
    capabilities = {name: getattr(hello.capabilities, name) for name in _CAPABILITY_FIELDS}
    return EngineHello(
        engine_id=EngineId(hello.engine_id),
        boot_id=hello.boot_id,
        address=hello.address,
        sidecar_address=hello.sidecar_address,
        capabilities=Capabilities(models=tuple(hello.capabilities.models), **capabilities),
        epoch=hello.epoch,
        draining=hello.draining,
        unacked_seq=hello.unacked_seq,
        health=health(hello.health, stuck=False),
        health_reason=hello.health_reason,
    )


def engine_report(report: engine_service_pb2.Report, engine_id: EngineId) -> EngineReport:
    return EngineReport(
        seq=report.seq,
        load=Load(**dict(zip(_LOAD_FIELDS, _load_values(report.load), strict=True)))
        if report.HasField("load")
        else None,
        calls=tuple(call_report(call, engine_id) for call in report.calls),
        health=health(report.health, report.stuck),
        health_reason=report.health_reason,
        boot_id=report.boot_id,
        engine_down=report.engine_down,
    )


def call_report(report: engine_service_pb2.CallReport, engine_id: EngineId) -> CallReport:
    """Counters of one call."""
    return CallReport(
        call_id=CallId(report.call_id),
        program_id=ProgramId(report.program_id),
        engine_id=engine_id,
        tenant=Tenant(report.tenant),
        root=ProgramId(report.root_program_id),
        attempt=report.attempt,
        thread_id=report.thread_id,
        attained_service_us=report.attained_service_us,
        boot_id=report.boot_id,
        service_us=report.service_us,
        wait_us=report.wait_us,
        prompt_tokens=report.prompt_tokens,
        cached_tokens=report.cached_tokens,
        output_tokens=report.output_tokens,
        preemptions=report.preemptions,
        level=report.level,
        running=report.running,
        outcome=outcome(report.outcome),
        engine_ids=tuple(map(EngineId, report.engine_ids)),
        phases=tuple((phase.kind, phase.duration_us) for phase in report.phases),
        prefix_miss=report.prefix_miss,
        common_tokens=report.common_tokens,
        arrive_unix_us=report.arrive_unix_us,
    )


def engine_to_message(engine: Engine) -> types_pb2.Engine:
    """An engine, as the control plane sees it."""
    capabilities, load = engine.capabilities, engine.load
    condition = engine.condition
    message = types_pb2.Engine(
        engine_id=engine.engine_id,
        boot_id=engine.boot_id,
        address=engine.address,
        state=types_pb2.EngineState.ValueType(condition.state),
        state_reason=condition.reason,
        capabilities=types_pb2.EngineCapabilities(
            models=capabilities.models, **{name: getattr(capabilities, name) for name in _CAPABILITY_FIELDS}
        ),
        load=types_pb2.EngineLoad(**{name: getattr(load, name) for name in _LOAD_FIELDS}),
        policy_version=engine.policy_version,
        calls_in_flight=engine.in_flight,
    )
    if engine.heard_unix_us:
        message.last_report_time.FromMicroseconds(engine.heard_unix_us)
    return message


def program_key_to_message(key: ProgramKey) -> engine_service_pb2.ProgramKey:
    return engine_service_pb2.ProgramKey(tenant=key.tenant, program_id=key.program_id)


def to_engine(message: directives.ToEngine, epoch: int) -> engine_service_pb2.AttachResponse:
    """A message to an engine's sidecar."""
    match message:
        case directives.Acknowledgement(seq):
            return engine_service_pb2.AttachResponse(ack=engine_service_pb2.Ack(seq=seq))
        case directives.Welcome(policy, paused, shares):
            welcome = engine_service_pb2.Welcome(
                epoch=epoch,
                policy=policy_version_to_message(policy),
                paused=[program_key_to_message(key) for key in paused],
                shares=_shares(shares),
            )
            return engine_service_pb2.AttachResponse(welcome=welcome)
        case _:
            return engine_service_pb2.AttachResponse(directive=_directive(message, epoch))


def _directive(directive: directives.Directive, epoch: int) -> engine_service_pb2.Directive:
    match directive:
        case directives.Accounts(accounts):
            return engine_service_pb2.Directive(
                epoch=epoch, accounts=engine_service_pb2.Accounts(accounts=map(_account, accounts))
            )
        case directives.ExecutePolicy(policy):
            return engine_service_pb2.Directive(epoch=epoch, policy=policy_version_to_message(policy))
        case directives.PauseCalls(root, paused):
            pause = engine_service_pb2.PauseCalls(tenant=root.tenant, program_id=root.program_id, paused=paused)
            return engine_service_pb2.Directive(epoch=epoch, pause=pause)
        case directives.CancelCalls(call_ids):
            return engine_service_pb2.Directive(epoch=epoch, cancel=engine_service_pb2.CancelCalls(call_ids=call_ids))
        case directives.ToolWait():
            wait = engine_service_pb2.ToolWait(
                tenant=directive.root.tenant,
                root_program_id=directive.root.program_id,
                program_id=directive.program_id,
                thread_id=directive.thread_id,
                waiting=directive.waiting,
                expected_us=directive.expected_us,
            )
            return engine_service_pb2.Directive(epoch=epoch, tool_wait=wait)
        case directives.ProgramEnded(root):
            over = engine_service_pb2.ProgramEnded(tenant=root.tenant, root_program_id=root.program_id)
            return engine_service_pb2.Directive(epoch=epoch, program_ended=over)
        case directives.TenantShares(shares):
            return engine_service_pb2.Directive(epoch=epoch, shares=_shares(shares))


def _shares(shares: tuple[tuple[Tenant, int], ...]) -> engine_service_pb2.TenantShares:
    return engine_service_pb2.TenantShares(
        shares=[engine_service_pb2.TenantShare(tenant=tenant, weight=weight) for tenant, weight in shares]
    )


def _account(account: directives.Account) -> engine_service_pb2.ProgramAccount:
    return engine_service_pb2.ProgramAccount(
        tenant=account.root.tenant,
        root_program_id=account.root.program_id,
        attained_service_us=account.attained_service_us,
        wait_us=account.wait_us,
    )


def demand_to_message(demand: Demand) -> admin_service_pb2.GetDemandResponse:
    signals, size, needed = demand.signals, demand.size, demand.needed
    return admin_service_pb2.GetDemandResponse(
        programs=signals.programs,
        programs_waiting=demand.waiting_programs,
        calls=signals.calls,
        calls_held=signals.held_calls,
        programs_held=signals.held_programs,
        context_tokens=signals.context_tokens,
        owed_service_us=signals.owed_us,
        engine_context_tokens=size.context_tokens,
        engine_calls=size.calls,
        needed=admin_service_pb2.EnginesNeeded(
            context=needed.context, calls=needed.calls, service=needed.service, waiting=needed.waiting
        ),
        engines=[
            admin_service_pb2.EngineDemand(
                engine_id=each.engine_id,
                kept_tokens=each.kept_tokens,
                programs=each.programs,
                calls_in_flight=each.calls,
            )
            for each in demand.engines
        ],
    )
