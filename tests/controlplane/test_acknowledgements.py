"""Reports that have landed are acknowledged: the first one at once, later ones together, unless the sidecar leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from agentserving_controlplane import engine_sessions
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.engine_sessions import EngineHello, EngineReport, EngineSession
from agentserving_controlplane.engines.directives import Acknowledgement
from controlplane.leader_builders import attach, leader, sent, until


@contextlib.asynccontextmanager
async def acknowledging() -> AsyncIterator[tuple[ControlPlane, EngineSession]]:
    async with leader() as plane:
        session = await attach(plane)
        task = asyncio.create_task(session.acknowledge_reports())
        yield plane, session
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Acks:
    """Acknowledgements that a session has sent so far."""

    def __init__(self, session: EngineSession) -> None:
        self._session = session
        self.seqs: list[int] = []

    def have(self, seq: int) -> bool:
        self.seqs += [message.seq for message in sent(self._session, Acknowledgement)]
        return bool(self.seqs) and self.seqs[-1] == seq


async def test_reports_soon_after_an_acknowledgement_share_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_sessions, "ACK_INTERVAL_S", 0.3)
    async with acknowledging() as (plane, session):
        acks = Acks(session)
        for seq in range(1, 101):
            await session.report(EngineReport(seq=seq, boot_id="b"))
            await plane.settled()
            await asyncio.sleep(0)
        await until(lambda: acks.have(100))
        assert acks.seqs == sorted(set(acks.seqs))
        assert len(acks.seqs) < 50


async def test_a_sidecar_that_leaves_waits_for_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_sessions, "ACK_INTERVAL_S", 3600.0)
    async with acknowledging() as (_, session):
        acks = Acks(session)
        await session.report(EngineReport(seq=1, boot_id="b"))
        await until(lambda: acks.have(1))
        await session.report(EngineReport(seq=2, boot_id="b"))
        leaving = EngineHello(engine_id="e1", boot_id="b", address="e1:1", sidecar_address="e1:2", draining=True)
        await session.hello(leaving)
        await until(lambda: acks.have(2))
        for seq in (3, 4):
            await session.report(EngineReport(seq=seq, boot_id="b"))
            await until(lambda seq=seq: acks.have(seq))  # type: ignore[misc]
