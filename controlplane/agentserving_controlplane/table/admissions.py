"""What an admission finds and what it answers: the program of a request, and the ticket of a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentserving.contract import ticket
from agentserving.v1 import call_service_pb2

from agentserving_controlplane.errors import DomainError
from agentserving_controlplane.table.process_table import (
    CLOSED,
    MAX_PARENTS,
    ProcessTable,
)
from agentserving_controlplane.table.programs import MAX_NAME_BYTES
from agentserving_controlplane.table.rows import MAX_THREAD_BYTES, CallRow, ProgramRow, cut

if TYPE_CHECKING:
    from agentserving_controlplane.control_plane import ControlPlane

TICKET_LIFETIME_S = 600


def program_for(
    table: ProcessTable, request: call_service_pb2.AdmitCallRequest, tenant: str, now_us: int
) -> ProgramRow:
    """The program of a request; opened, or opened again, when the request may do so."""
    known = table.rows.get((tenant, request.program_id)) if request.program_id else None
    if known is not None:
        if known.state == CLOSED and request.implicit:
            # A header is a claim, never an error: an id used again after its end is the same program, gone on.
            table.reopen(known)
        return known
    if request.program_id and not request.implicit:
        return table.find(tenant, request.program_id)
    parent, name = request.parent_program_id, request.name
    if request.implicit:
        name = cut(name, MAX_NAME_BYTES)
        try:
            if parent and parent != request.program_id and (tenant, parent) not in table.rows:
                table.open(tenant, parent, now_us)
            return table.open(tenant, request.program_id, now_us, name=name, parent=parent)
        except DomainError:
            # A parent that cannot be one is left out; what is wrong with the program itself is told below.
            parent = ""
    return table.open(tenant, request.program_id, now_us, name=name, parent=parent)


def as_claim(
    table: ProcessTable, row: ProgramRow, thread_id: str, parents: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """A thread and parents as somebody claims them: cut to what is allowed, without parents that are not known."""
    known = tuple(parent for parent in parents if table.knows_call(row, parent))
    return cut(thread_id, MAX_THREAD_BYTES), known[-MAX_PARENTS:]


def admission_answer(plane: ControlPlane, row: ProgramRow, call: CallRow) -> call_service_pb2.AdmitCallResponse:
    """Where a call runs, and its ticket."""
    engine = plane.engines.reachable(call.engine_id)
    root = plane.table.root_of(row)
    signed = ticket.sign(
        ticket.Ticket(
            call_id=call.call_id,
            attempt=call.attempt,
            program_id=row.program_id,
            root_program_id=row.root,
            tenant=row.tenant,
            thread_id=call.thread_id,
            engine_id=engine.engine_id,
            attained_service_us=call.attained_service_us,
            wait_us=root.account_wait_us,
            policy_version=plane.policy.version,
            epoch=plane.epoch,
            expires_unix_s=call.admit_us // 1_000_000 + TICKET_LIFETIME_S,
            program_arrival_us=root.open_us,
            class_name=root.name,
        ),
        plane.settings.ticket_keys()[0],
    )
    return call_service_pb2.AdmitCallResponse(
        call_id=call.call_id,
        attempt=call.attempt,
        program_id=row.program_id,
        engine_id=engine.engine_id,
        engine_address=engine.address,
        ticket=signed,
        sidecar_address=engine.sidecar_address,
        epoch=plane.epoch,
    )
