"""A watch goes on through broken streams, compacted revisions and control planes that have lost their store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import agentserving
import grpc
import pytest
from agentserving import AsyncClient, Client, ProgramChanges, ProgramState
from agentserving.client.watches import MAX_DELAY_S, Watch
from agentserving.contract.signatures import signing_key
from agentserving.transport.errors import NotFoundError, UnavailableError
from agentserving_controlplane.__main__ import add_services
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_controlplane.settings import PlaneSettings
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.table.history import KEPT, History

KEY = signing_key(b"0123456789abcdef")


@asynccontextmanager
async def control_plane(port: int = 0, history: int = KEPT) -> AsyncIterator[tuple[int, ControlPlane]]:
    """A real one, with an empty store, in this process."""
    settings = PlaneSettings(ticket_keys=lambda: (KEY,), policy="atlas", balancer=Balancer.LEAST_USED)
    store = MemoryStore()
    plane = ControlPlane(settings, store, await store.acquire("test"), lambda error: None)
    plane.history = History(plane.history.revision, history)
    await plane.recover(store)
    server = grpc.aio.server()
    add_services(server, plane)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port, plane
    finally:
        await server.stop(None)
        await plane.commits.close()


def states(changes: ProgramChanges) -> dict[str, ProgramState]:
    return {program.program_id: program.state for program in changes.changed}


async def test_a_watch_tells_each_change_after_its_revision() -> None:
    async with control_plane() as (port, _), AsyncClient(f"127.0.0.1:{port}") as client, asyncio.timeout(30):
        await client.open_program(program_id="before")
        begun = (await client.open_program(program_id="p")).revision
        await client.pause_program("p")
        watch = client.watch_programs(after_revision=begun)
        assert states(await anext(watch)) == {"p": ProgramState.PAUSED}
        await client.open_program(program_id="q")
        assert states(await anext(watch)) == {"q": ProgramState.ACTIVE}
        await watch.aclose()


async def test_a_revision_that_is_no_longer_kept_gives_the_whole_list() -> None:
    async with control_plane(history=2) as (port, _), AsyncClient(f"127.0.0.1:{port}") as client, asyncio.timeout(30):
        begun = (await client.open_program(program_id="p0")).revision
        for index in range(1, 5):
            await client.open_program(program_id=f"p{index}")
        await client.close_program("p4")
        watch = client.watch_programs(after_revision=begun)
        changes = await anext(watch)
        assert changes.relisted
        assert states(changes) == {f"p{index}": ProgramState.ACTIVE for index in range(4)} | {"p4": ProgramState.CLOSED}
        await client.pause_program("p0")
        after = await anext(watch)
        assert (states(after), after.relisted) == ({"p0": ProgramState.PAUSED}, False)
        await watch.aclose()


async def test_a_control_plane_that_has_lost_its_store_gives_the_whole_list() -> None:
    seen: list[ProgramChanges] = []

    async def read(client: AsyncClient) -> None:
        async for changes in client.watch_programs():
            seen.append(changes)
            if changes.relisted:
                return

    async with asyncio.timeout(60):
        async with control_plane() as (port, _):
            client = AsyncClient(f"127.0.0.1:{port}")
            for index in range(5):
                await client.open_program(program_id=f"p{index}")
            reading = asyncio.create_task(read(client))
            while not seen:
                await client.pause_program("p1")
                await client.resume_program("p1")
        async with control_plane(port), client:
            await reading
    assert set(states(seen[0])) == {"p1"}
    assert (seen[-1].relisted, seen[-1].changed) == (True, ())


async def test_a_blocking_watch_tells_the_same() -> None:
    found: list[ProgramChanges] = []

    def watch(address: str, begun: int) -> None:
        with Client(address) as client:
            found.append(next(client.watch_programs(after_revision=begun, program_id="p")))

    async with control_plane() as (port, _), AsyncClient(f"127.0.0.1:{port}") as client, asyncio.timeout(30):
        begun = (await client.open_program(program_id="p")).revision
        worker = threading.Thread(target=watch, args=(f"127.0.0.1:{port}", begun))
        worker.start()
        await client.open_program(program_id="q")
        await client.close_program("p")
        await asyncio.to_thread(worker.join, 20)
    assert states(found[0]) == {"p": ProgramState.CLOSED}


def test_delays_grow_to_a_bound_and_what_will_not_pass_is_raised() -> None:
    watch = Watch(0, "")
    delays = [watch.delay_s(UnavailableError("away")) for _ in range(10)]
    assert delays == sorted(delays)
    assert delays[-1] == MAX_DELAY_S
    assert watch.delay_s(UnavailableError("away", retry_after_s=60)) == 60
    with pytest.raises(NotFoundError):
        watch.delay_s(NotFoundError("gone for good"))
    assert watch.delay_s(agentserving.GoneError("compacted")) == 0
    assert watch.must_list
