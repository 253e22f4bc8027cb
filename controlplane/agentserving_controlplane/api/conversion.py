"""Between messages and values: policies, programs, calls. Pure; enums have the same numbers on both sides.

Messages of engines: engine_conversion.py.
"""

from __future__ import annotations

import hashlib
import re
from itertools import islice

from agentserving.contract.budgets import UNLIMITED, Budget
from agentserving.contract.ids import CallId, EngineId, ProgramId, Tenant
from agentserving.contract.policy import InvalidPolicyError, Policy
from agentserving.contract.policy_message import policy_from, policy_to
from agentserving.contract.service_class import ServiceClass
from agentserving.v1 import admin_service_pb2, call_service_pb2, program_service_pb2, types_pb2
from google.protobuf.message import DecodeError, Message

from agentserving_controlplane.api.status_codes import budget_to_message, rate_to_message
from agentserving_controlplane.call_ends import EndOfCall
from agentserving_controlplane.calls import Admission
from agentserving_controlplane.errors import InvalidError
from agentserving_controlplane.policy.auto import Choice
from agentserving_controlplane.policy.in_force import PolicyChange
from agentserving_controlplane.policy.version import Balancer, PolicyVersion
from agentserving_controlplane.state import ProgramView
from agentserving_controlplane.table import budgets
from agentserving_controlplane.table.admission_plan import AdmissionRequest
from agentserving_controlplane.table.budgets import Addition
from agentserving_controlplane.table.endings import EndedCall, Ending, News, Origin
from agentserving_controlplane.table.programs import OpenRequest
from agentserving_controlplane.table.rows import CallRow, ProgramRow, TimeRow
from agentserving_controlplane.table.service_rights import known_service_class
from agentserving_controlplane.table.states import Outcome, ProgramState

# Calls in flight in one Program message: about 200 kB. A program may have more.
MAX_CALLS_SHOWN = 1024

_TRACE_PARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# Python 3.11 has no test whether an integer is a value of an enum, and making one of a number is slow.
# Fields that do not change what a request asks for.
_NOT_ASKED_FOR = ("idempotency_key", "addition_id", "gateway_us", "held_us", "trace_parent")
_OUTCOMES = {int(each): each for each in Outcome}
_STATES = frozenset(map(int, ProgramState))
_BALANCER = {
    types_pb2.BALANCER_ROUND_ROBIN: Balancer.ROUND_ROBIN,
    types_pb2.BALANCER_LEAST_USED: Balancer.LEAST_USED,
    types_pb2.BALANCER_PROGRAM_LOCALITY: Balancer.PROGRAM_LOCALITY,
    types_pb2.BALANCER_PREFIX_AWARE: Balancer.PREFIX_AWARE,
}


def digest(request: Message) -> str:
    """Identifies what a request asks for, whatever its idempotency key."""
    bare = type(request)()
    bare.CopyFrom(request)
    for name in _NOT_ASKED_FOR:
        if name in bare.DESCRIPTOR.fields_by_name:
            bare.ClearField(name)
    return hashlib.blake2b(bare.SerializeToString(deterministic=True), digest_size=12).hexdigest()


def _digest_if_keyed(request: Message, key: str) -> str:
    return digest(request) if key else ""


# -- enums -----------------------------------------------------------------------------------------------------------


def outcome(number: int) -> Outcome:
    """An outcome; one that only newer senders know counts as FAILED."""
    return _OUTCOMES.get(number, Outcome.FAILED)


def known_outcome(number: int) -> Outcome:
    """An outcome. InvalidError for a number that is none."""
    if number not in _OUTCOMES:
        raise InvalidError("BAD_OUTCOME", f"outcome: unknown value {number}", field="outcome")
    return _OUTCOMES[number]


def states(numbers: list[int]) -> list[ProgramState]:
    """The program states among some numbers; unknown ones match no program. UNSPECIFIED is ignored."""
    return [ProgramState(number) for number in numbers if number in _STATES]


def service_class_to_number(value: ServiceClass) -> types_pb2.ServiceClass.ValueType:
    """By number, which the wire and the value have in common."""
    return types_pb2.ServiceClass.ValueType(value)


# -- policies --------------------------------------------------------------------------------------------------------


def policy_from_message(message: types_pb2.Policy) -> Policy:
    """A policy value; with only a preset's name set, the preset. InvalidError names the field."""
    try:
        return policy_from(message)
    except InvalidPolicyError as error:
        raise InvalidError("BAD_POLICY", str(error), field=f"policy.{error.field}") from error


def balancer_from_number(number: int) -> Balancer:
    """InvalidError for a number that is no balancer."""
    for known, value in _BALANCER.items():
        if known == number:
            return value
    raise InvalidError("BAD_BALANCER", f"balancer: unknown value {number}", field="balancer")


def balancer_to_number(balancer: Balancer) -> types_pb2.Balancer.ValueType:
    """Inverse of `balancer_from_number`."""
    return next(number for number, value in _BALANCER.items() if value is balancer)


def policy_change(request: admin_service_pb2.ApplyPolicyRequest) -> PolicyChange:
    """InvalidError."""
    has_policy = request.HasField("policy") and request.policy != types_pb2.Policy()
    return PolicyChange(
        policy=policy_from_message(request.policy) if has_policy else None,
        balancer=balancer_from_number(request.balancer) if request.balancer else None,
        expected_version=request.expected_version,
        idempotency_key=request.idempotency_key,
        digest=_digest_if_keyed(request, request.idempotency_key),
    )


def policy_version_to_message(version: PolicyVersion) -> types_pb2.PolicyVersion:
    return types_pb2.PolicyVersion(
        version=version.version,
        policy=policy_to(version.policy),
        balancer=balancer_to_number(version.balancer),
    )


def choice_to_message(choice: Choice) -> admin_service_pb2.PolicyChoice:
    """What `auto` has chosen for a class."""
    message = admin_service_pb2.PolicyChoice(
        application=choice.class_name,
        chosen=choice.chosen,
        reason=choice.reason,
        cv2=choice.cv2,
        finished=choice.finished,
        live=choice.live,
    )
    message.since_time.FromMicroseconds(choice.since_us)
    return message


def policy_version_from_bytes(data: bytes) -> PolicyVersion:
    """A policy version as version 0.1 stored it: the message. ValueError."""
    try:
        message = types_pb2.PolicyVersion.FromString(data)
        policy, balancer = policy_from(message.policy), balancer_from_number(message.balancer)
    except (DecodeError, InvalidError) as error:
        raise ValueError(str(error)) from error
    return PolicyVersion(message.version, policy, balancer)


# -- requests --------------------------------------------------------------------------------------------------------


def open_request(
    request: program_service_pb2.OpenProgramRequest, tenant: Tenant, limit: ServiceClass = ServiceClass.UNSPECIFIED
) -> OpenRequest:
    """The value of OpenProgram's request; tenant and `limit`, the best class of service, are the caller's."""
    return OpenRequest(
        tenant=tenant,
        program_id=ProgramId(request.program_id),
        name=request.name,
        parent=ProgramId(request.parent_program_id),
        service_class=known_service_class(request.service_class),
        service_class_limit=limit,
        idempotency_key=request.idempotency_key,
        digest=_digest_if_keyed(request, request.idempotency_key),
        budget=budget(request.budget) if request.HasField("budget") else UNLIMITED,
    )


def budget(message: types_pb2.Budget) -> Budget:
    return Budget(tokens=message.tokens, engine_us=message.engine_us, calls=message.calls)


def addition(request: program_service_pb2.ResumeProgramRequest) -> Addition:
    """What ResumeProgram adds to a budget; empty when it only resumes."""
    return Addition(budget(request.add), request.addition_id, _digest_if_keyed(request, request.addition_id))


def admission_request(
    request: call_service_pb2.AdmitCallRequest, tenant: Tenant, limit: ServiceClass = ServiceClass.UNSPECIFIED
) -> AdmissionRequest:
    """AdmitCall; `limit`: the best class of service of the caller's key. Gateways send that of their client's."""
    return AdmissionRequest(
        tenant=tenant,
        program_id=ProgramId(request.program_id),
        thread_id=request.thread_id,
        parent_call_ids=tuple(map(CallId, request.parent_call_ids)),
        implicit=request.implicit,
        name=request.name,
        parent_program_id=ProgramId(request.parent_program_id),
        prompt_tokens=request.prompt_tokens,
        model=request.model,
        retry_of_call_id=CallId(request.retry_of_call_id),
        exclude_engine_ids=frozenset(map(EngineId, request.exclude_engine_ids)),
        final=request.final,
        max_fallbacks=request.max_fallbacks,
        gateway_us=request.gateway_us,
        trace_parent=trace_parent(request.trace_parent),
        hold_id=request.hold_id,
        held_us=request.held_us,
        budget=budget(request.budget) if request.HasField("budget") else UNLIMITED,
        service_class=known_service_class(request.service_class),
        service_class_limit=max(limit, known_service_class(request.service_class_limit, "service_class_limit")),
        idempotency_key=request.idempotency_key,
        digest=_digest_if_keyed(request, request.idempotency_key),
    )


def trace_parent(text: str) -> str:
    """A W3C traceparent of version 00; "" for another text."""
    return text if _TRACE_PARENT.fullmatch(text) else ""


def end_of_call(request: call_service_pb2.EndCallRequest, tenant: Tenant) -> EndOfCall:
    """The value of EndCall's request; the tenant is the caller's, not the message's."""
    return EndOfCall(
        tenant=tenant,
        call_id=CallId(request.call_id),
        outcome=outcome(request.outcome),
        never_started=request.never_started,
        engine_id=EngineId(request.engine_id),
        tries=request.tries,
        if_unseen=request.if_unseen,
    )


def admission_to_message(admission: Admission) -> call_service_pb2.AdmitCallResponse:
    """The answer to AdmitCall."""
    message = call_service_pb2.AdmitCallResponse(
        call_id=admission.call_id,
        attempt=admission.attempt,
        program_id=admission.program_id,
        engine_id=admission.engine_id,
        engine_address=admission.engine_address,
        ticket=admission.ticket,
        sidecar_address=admission.sidecar_address,
        epoch=admission.epoch,
        fallbacks=[
            call_service_pb2.NamedEngine(engine_id=engine.engine_id, address=engine.address)
            for engine in admission.fallbacks
        ],
    )
    if admission.rates:
        message.rates.extend(map(rate_to_message, admission.rates))
    if admission.budget is not None:
        message.budget.CopyFrom(budget_to_message(admission.budget))
    return message


# -- programs and calls ----------------------------------------------------------------------------------------------


def call_to_message(call: CallRow) -> types_pb2.Call:
    message = types_pb2.Call(
        call_id=call.call_id,
        attempt=call.attempt,
        thread_id=call.thread_id,
        engine_id=call.engine_id,
        attained_service_us=call.attained_service_us,
        service_us=call.service_us,
        wait_us=call.wait_us,
        prompt_tokens=call.prompt_tokens,
        cached_tokens=call.cached_tokens,
        output_tokens=call.output_tokens,
        preemptions=call.preemptions,
        level=call.level,
        running=call.running,
        parent_call_ids=call.parents,
        phases=[types_pb2.Phase(kind=types_pb2.PhaseKind.ValueType(kind), duration_us=us) for kind, us in call.phases],
        prefix_miss=types_pb2.PrefixMiss.ValueType(call.prefix_miss),
        common_tokens=call.common_tokens,
        gateway_us=call.gateway_us,
        trace_parent=call.trace_parent,
        held_us=call.held_us,
    )
    message.admit_time.FromMicroseconds(call.admit_us)
    if call.arrive_us:
        message.arrive_time.FromMicroseconds(call.arrive_us)
    return message


def _times(times: TimeRow) -> types_pb2.TimeSplit:
    return types_pb2.TimeSplit(**{name: getattr(times, name) for name in TimeRow.__struct_fields__})


def program_to_message(view: ProgramView) -> types_pb2.Program:
    """A program, with the account of its root, and MAX_CALLS_SHOWN of its calls in flight."""
    row = view.row
    message = types_pb2.Program(
        program_id=row.program_id,
        tenant=row.tenant,
        name=row.name,
        parent_program_id=row.parent,
        root_program_id=row.root,
        state=types_pb2.ProgramState.ValueType(view.state),
        outcome=types_pb2.Outcome.ValueType(row.outcome),
        attained_service_us=view.root.attained_service_us,
        total_service_us=row.total_service_us,
        wait_us=row.wait_us,
        calls_completed=row.calls_completed,
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        output_tokens=row.output_tokens,
        preemptions=row.preemptions,
        calls=[call_to_message(call) for call in islice(row.calls.values(), MAX_CALLS_SHOWN)],
        threads=[
            types_pb2.Thread(
                thread_id=thread.thread_id,
                calls=thread.calls,
                service_us=thread.service_us,
                wait_us=thread.wait_us,
            )
            for thread in row.threads.values()
        ],
        engine_ids=row.engines,
        level=view.level,
        revision=view.revision,
        tool=row.tool,
        service_class=service_class_to_number(row.service_class),
        times=_times(row.times),
        prefix_misses=[
            types_pb2.PrefixMisses(miss=types_pb2.PrefixMiss.ValueType(miss), calls=calls, lost_tokens=lost)
            for miss, (calls, lost) in sorted(row.prefix_misses.items())
        ],
    )
    message.open_time.FromMicroseconds(row.open_us)
    message.last_arrival_time.FromMicroseconds(row.last_arrival_us)
    if row.last_completion_us:
        message.last_completion_time.FromMicroseconds(row.last_completion_us)
    if row.close_us:
        message.close_time.FromMicroseconds(row.close_us)
    _add_budget(message, view.root)
    return message


def _add_budget(message: types_pb2.Program, root: ProgramRow) -> None:
    """The budget of a program's tree, and what pauses it."""
    state = budgets.state_of(root)
    if state is not None:
        message.budget.CopyFrom(budget_to_message(state))
    if message.state == types_pb2.PROGRAM_STATE_PAUSED:
        # Of both causes the one that resuming alone does not end.
        spent = budgets.is_spent(root)
        message.pause_cause = types_pb2.PAUSE_CAUSE_BUDGET if spent else types_pb2.PAUSE_CAUSE_REQUEST


def _origin(origin: Origin) -> call_service_pb2.ProgramOrigin:
    message = call_service_pb2.ProgramOrigin(
        program_id=origin.program_id,
        name=origin.name,
        parent_program_id=origin.parent,
        root_program_id=origin.root,
        service_class=service_class_to_number(origin.service_class),
    )
    message.open_time.FromMicroseconds(origin.open_us)
    message.root_open_time.FromMicroseconds(origin.root_open_us)
    return message


def _ending(ending: Ending) -> call_service_pb2.Ending:
    origin, how = _origin(ending.origin), types_pb2.Outcome.ValueType(ending.outcome)
    if isinstance(ending, EndedCall):
        call = call_service_pb2.EndedCall(call=call_to_message(ending.call), program=origin, outcome=how)
        call.end_time.FromMicroseconds(ending.end_us)
        return call_service_pb2.Ending(call=call)
    program = call_service_pb2.ClosedProgram(program=origin, outcome=how, calls_in_flight=ending.calls_in_flight)
    program.close_time.FromMicroseconds(ending.close_us)
    return call_service_pb2.Ending(program=program)


def endings(news: News, now_us: int, *, restarted: bool = False) -> call_service_pb2.WatchEndingsResponse:
    """News for a watcher of endings; `restarted`: its position was given out by another process."""
    message = call_service_pb2.WatchEndingsResponse(
        position=news.position, endings=[_ending(each) for each in news.endings], lost=news.lost, restarted=restarted
    )
    message.send_time.FromMicroseconds(now_us)
    return message
