"""Which engines a picker chooses by itself, and when it is ready, while leaders come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agentserving.contract.ids import ProgramId, Tenant
from agentserving.transport.leader_channel import LeaderChannel
from agentserving_gateway.admission import Admission
from agentserving_gateway.calls import CallRequest
from agentserving_gateway.engines_file import EnginesFile
from agentserving_gateway.errors import HttpError
from gateway.gateway_rig import until
from support.served_plane import PlayedEngine, ServedPlane

CALL = CallRequest(tenant=Tenant("default"), program_id=ProgramId("p"))


async def always(address: str) -> bool:
    return True


@asynccontextmanager
async def admission_to(file: Path, *ports: int) -> AsyncIterator[Admission]:
    channel = LeaderChannel(",".join(f"127.0.0.1:{port}" for port in ports))
    admission = Admission(channel, EnginesFile(file), always)
    running = asyncio.create_task(admission.run())
    try:
        yield admission
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_the_old_engines_serve_while_a_new_leader_has_none_yet(tmp_path: Path) -> None:
    async with ServedPlane() as old, ServedPlane() as new:
        await PlayedEngine(old.engine_service).hello("e0")
        async with admission_to(tmp_path / "e" / "eds.json", old.port, new.port) as admission:
            await until(lambda: len(admission.known_engines) == 1)
            await old.server.stop(0)
            await until(lambda: not admission.connected)
            await until(lambda: admission.connected)
            assert not new.plane.engines.engines
            await new.server.stop(0)
            await until(lambda: not admission.connected)
            admitted = await admission.admit(CALL)
            assert (admitted.engine_id, admitted.engine_address, admitted.ticket) == ("e0", "127.0.0.1:9", "")


async def test_a_request_that_is_no_call_waits_a_moment_for_an_engine(tmp_path: Path) -> None:
    async with ServedPlane() as served, admission_to(tmp_path / "e" / "eds.json", served.port) as admission:
        assert await admission.ready_engines_soon() == []
        waiting = asyncio.create_task(admission.ready_engines_soon())
        await asyncio.sleep(0)
        assert not waiting.done()
        await PlayedEngine(served.engine_service).hello("e0")
        assert [engine.engine_id for engine in await waiting] == ["e0"]


async def test_a_picker_without_engines_is_ready_once_a_leader_has_had_time_to_find_some(tmp_path: Path) -> None:
    async with ServedPlane() as served, admission_to(tmp_path / "e" / "eds.json", served.port) as admission:
        assert not admission.ready
        await until(lambda: admission.connected)
        assert not admission.ready
        await until(lambda: admission.ready)
        with pytest.raises(HttpError, match="none has attached"):
            await admission.admit(CALL)
        await served.server.stop(0)
        await until(lambda: not admission.ready)
