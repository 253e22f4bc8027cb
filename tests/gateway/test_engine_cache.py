"""A gateway remembers its engines over restarts, its own and the control plane's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agentserving.contract.ids import EngineId, ProgramId, Tenant
from agentserving.transport.leader_channel import LeaderChannel
from agentserving_gateway.admission import Admission
from agentserving_gateway.calls import CallRequest
from agentserving_gateway.engine_cache import EngineCache
from agentserving_gateway.engines import Engine
from agentserving_gateway.errors import HttpError
from gateway.gateway_rig import until
from support.served_plane import PlayedEngine, ServedPlane

E0 = Engine(EngineId("e0"), "h:1", is_ready=False, models=frozenset({"m"}))
CALL = CallRequest(tenant=Tenant("default"), program_id=ProgramId("p"))


def test_saved_ids_and_addresses_are_loaded_again(tmp_path: Path) -> None:
    EngineCache(tmp_path / "new").save([E0])
    assert EngineCache(tmp_path / "new").load() == [Engine(EngineId("e0"), "h:1")]


def test_an_empty_set_does_not_replace_a_saved_one(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.save([E0])
    cache.save([])
    assert len(cache.load()) == 1


@pytest.mark.parametrize("content", ["", "{", "7", "[1]", '[["a"]]', '{"a": 1}'])
def test_a_torn_file_loads_as_no_engines(tmp_path: Path, content: str) -> None:
    (tmp_path / "engines.json").write_text(content)
    assert EngineCache(tmp_path).load() == []


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    EngineCache(tmp_path / "file").save([E0])
    assert EngineCache(None).load() == []


@asynccontextmanager
async def admission_to(*ports: int) -> AsyncIterator[Admission]:
    admission = Admission(LeaderChannel(",".join(f"127.0.0.1:{port}" for port in ports)))
    running = asyncio.create_task(admission.run())
    try:
        yield admission
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_the_old_engines_serve_while_a_new_leader_has_none_yet() -> None:
    async with ServedPlane() as old, ServedPlane() as new:
        await PlayedEngine(old.engine_service).hello("e0")
        async with admission_to(old.port, new.port) as admission:
            await until(lambda: len(admission.known_engines) == 1)
            await old.server.stop(0)
            await until(lambda: not admission.connected)
            await until(lambda: admission.connected)
            assert not new.plane.engines.engines
            await new.server.stop(0)
            await until(lambda: not admission.connected)
            admitted = await admission.admit(CALL)
            assert (admitted.engine_id, admitted.engine_address, admitted.ticket) == ("e0", "127.0.0.1:9", "")


async def test_a_gateway_without_engines_is_ready_once_a_leader_has_had_time_to_find_some() -> None:
    async with ServedPlane() as served, admission_to(served.port) as admission:
        assert not admission.ready
        await until(lambda: admission.connected)
        assert not admission.ready
        await until(lambda: admission.ready)
        with pytest.raises(HttpError, match="none has attached"):
            await admission.admit(CALL)
        await served.server.stop(0)
        await until(lambda: not admission.ready)
