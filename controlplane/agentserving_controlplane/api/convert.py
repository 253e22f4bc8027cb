"""Between messages and values. Pure."""

from __future__ import annotations

from agentserving.contract.policy import InvalidPolicyError, Policy
from agentserving.contract.policy_message import policy_from
from agentserving.v1 import call_service_pb2, engine_service_pb2, types_pb2

from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_controlplane.errors import InvalidError
from agentserving_controlplane.table.endings import EndedCall, Ending, News, Origin
from agentserving_controlplane.table.reported import Reported
from agentserving_controlplane.table.rows import CallRow, ProgramRow

_BALANCER = {
    types_pb2.BALANCER_ROUND_ROBIN: Balancer.ROUND_ROBIN,
    types_pb2.BALANCER_LEAST_USED: Balancer.LEAST_USED,
    types_pb2.BALANCER_PROGRAM_LOCALITY: Balancer.PROGRAM_LOCALITY,
    types_pb2.BALANCER_PREFIX_AWARE: Balancer.PREFIX_AWARE,
}


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


def call_to_message(call: CallRow) -> types_pb2.Call:
    """A call in flight."""
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
    )
    message.admit_time.FromMicroseconds(call.admit_us)
    return message


def program_to_message(row: ProgramRow, root: ProgramRow, state: int, level: int, revision: int) -> types_pb2.Program:
    """A row, with the account and the hold of its root."""
    message = types_pb2.Program(
        program_id=row.program_id,
        tenant=row.tenant,
        name=row.name,
        parent_program_id=row.parent,
        root_program_id=row.root,
        state=types_pb2.ProgramState.ValueType(state),
        outcome=types_pb2.Outcome.ValueType(row.outcome),
        attained_service_us=root.attained_service_us,
        total_service_us=row.total_service_us,
        wait_us=row.wait_us,
        calls_completed=row.calls_completed,
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        output_tokens=row.output_tokens,
        preemptions=row.preemptions,
        calls=[call_to_message(call) for call in row.calls.values()],
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
        level=level,
        revision=revision,
    )
    message.open_time.FromMicroseconds(row.open_us)
    message.last_arrival_time.FromMicroseconds(row.last_arrival_us)
    if row.last_completion_us:
        message.last_completion_time.FromMicroseconds(row.last_completion_us)
    if row.close_us:
        message.close_time.FromMicroseconds(row.close_us)
    return message


def _origin(origin: Origin) -> call_service_pb2.ProgramOrigin:
    message = call_service_pb2.ProgramOrigin(
        program_id=origin.program_id,
        name=origin.name,
        parent_program_id=origin.parent,
        root_program_id=origin.root,
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
    """What a watcher of endings is told."""
    message = call_service_pb2.WatchEndingsResponse(
        position=news.position, endings=[_ending(each) for each in news.endings], lost=news.lost, restarted=restarted
    )
    message.send_time.FromMicroseconds(now_us)
    return message


def outcome(number: int) -> int:
    """A word of the closed enum: what a newer engine or client may say beyond it counts as FAILED."""
    return number if number in types_pb2.Outcome.values() else types_pb2.OUTCOME_FAILED


def accounts(roots: list[ProgramRow]) -> engine_service_pb2.Accounts:
    """Where the accounts of these root programs stand."""
    return engine_service_pb2.Accounts(
        accounts=[
            engine_service_pb2.ProgramAccount(
                program_id=root.program_id,
                root_program_id=root.program_id,
                attained_service_us=root.attained_service_us,
                wait_us=root.account_wait_us,
            )
            for root in roots
        ]
    )


def reported(told: engine_service_pb2.CallReport, engine_id: str) -> Reported:
    """A call's counters as the table takes them."""
    return Reported(
        told.call_id,
        told.attempt,
        told.program_id,
        told.tenant,
        told.thread_id,
        told.root_program_id,
        told.attained_service_us,
        engine_id,
        told.boot_id,
        told.service_us,
        told.wait_us,
        told.prompt_tokens,
        told.cached_tokens,
        told.output_tokens,
        told.preemptions,
        told.level,
        told.running,
        outcome(told.outcome),
    )
