"""A leader on a store in memory, and what gateways and engines say to it, in values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from agentserving.contract.ids import ProgramId, Tenant
from agentserving_controlplane.call_ends import EndOfCall
from agentserving_controlplane.calls import Admission
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.engine_sessions import EngineHello, EngineReport, EngineSession
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.table.admission_plan import AdmissionRequest
from agentserving_controlplane.table.reports import CallReport
from agentserving_controlplane.table.states import Outcome
from controlplane.table_builders import check_invariants
from support.served_plane import SETTINGS

ACME, GLOBEX = Tenant("acme"), Tenant("globex")


@asynccontextmanager
async def leader(store: MemoryStore | None = None, **settings: Any) -> AsyncIterator[ControlPlane]:
    store = store or MemoryStore()
    plane = ControlPlane(replace(SETTINGS, **settings), store, await store.acquire("t"), lambda error: None)
    await plane.recover(store)
    yield plane
    check_invariants(plane.table)
    await plane.commits.close(1)


async def attach(plane: ControlPlane, name: str = "e1", **fields: Any) -> EngineSession:
    session = plane.new_session()
    address = f"{name}:8000"
    hello = {"engine_id": name, "boot_id": "b", "address": address, "sidecar_address": address, **fields}
    await session.hello(EngineHello(**hello))
    return session


def admit(plane: ControlPlane, program_id: str = "", tenant: Tenant = ACME, **fields: Any) -> Admission:
    request = AdmissionRequest(tenant=tenant, program_id=ProgramId(program_id), **{"implicit": True, **fields})
    return plane.calls.admit(request)


def end(plane: ControlPlane, admission: Admission, outcome: Outcome, tenant: Tenant = ACME, **fields: Any) -> None:
    plane.ends.end(EndOfCall(tenant=tenant, call_id=admission.call_id, outcome=outcome, **fields))


async def report(session: EngineSession, admission: Admission, tenant: Tenant = ACME, **fields: Any) -> None:
    assert session.engine is not None
    call = CallReport(
        call_id=admission.call_id,
        program_id=admission.program_id,
        engine_id=session.engine.engine_id,
        tenant=tenant,
        root=admission.program_id,
        attempt=admission.attempt,
        boot_id="b",
        engine_ids=tuple(named.engine_id for named in (admission, *admission.fallbacks)),
        **fields,
    )
    await session.report(EngineReport(calls=(call,)))


def sent(session: EngineSession, kind: type) -> list[Any]:
    """Messages of a kind that are queued for an engine; all others are dropped."""
    found = []
    while not session.link.outgoing.empty():
        message = session.link.outgoing.get_nowait()
        if isinstance(message, kind):
            found.append(message)
    return found


async def until(condition: Any, bound_s: float = 20.0) -> None:
    async with asyncio.timeout(bound_s):
        while not condition():
            await asyncio.sleep(0.01)
