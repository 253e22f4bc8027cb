"""Between channel records and messages of the contract. Pure."""

from __future__ import annotations

from agentserving.contract.channel import CallRecord, Load
from agentserving.v1 import engine_service_pb2 as pb
from agentserving.v1 import types_pb2

_OUTCOMES = {
    "": types_pb2.OUTCOME_UNSPECIFIED,
    "completed": types_pb2.OUTCOME_COMPLETED,
    "cancelled": types_pb2.OUTCOME_CANCELLED,
    "failed": types_pb2.OUTCOME_FAILED,
}


def call_report(record: CallRecord, boot_id: str) -> pb.CallReport:
    """A record as the leader hears it."""
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
        promotions=record.promotions,
        demotions=record.demotions,
        level=record.level,
        running=record.running,
        outcome=_OUTCOMES.get(record.outcome, types_pb2.OUTCOME_FAILED),
        boot_id=boot_id,
        first_token_us=record.first_token_us,
    )


def load_message(load: Load) -> types_pb2.EngineLoad:
    """Same fields, same names."""
    return types_pb2.EngineLoad(**{name: getattr(load, name) for name in load.__struct_fields__})
