"""The leader paused, cut off from etcd, told to go; etcd away: one leads, and nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator

import pytest
from agentserving import AsyncClient
from agentserving.client.operations import Operation
from agentserving.transport.connection import Settings
from agentserving.v1 import call_service_pb2, program_service_pb2
from agentserving_controlplane.store.etcd.store import EtcdStore
from support.accounted_load import Load, assert_same
from support.killable_cluster import KillableCluster, until
from support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(180)]

PREFIX = "/agentserving/default"
CLIENTS = 12


class LeaderLoad(Load):
    """Finds the leader by the client library; is never refused for want of one."""

    def __init__(self, cluster: KillableCluster) -> None:
        super().__init__(cluster, random.Random(4))
        self.client_library = AsyncClient(cluster.addresses, settings=Settings(tls=None, deadline_s=30))

    async def _insist(self, method: str, request: object) -> object:
        service, response = (
            ("CallService", call_service_pb2.AdmitCallResponse)
            if method == "AdmitCall"
            else ("ProgramService", program_service_pb2.OpenProgramResponse)
        )
        path = f"/agentserving.v1.{service}/{method}"
        return await self.client_library.run(Operation(path, request, response, lambda answer: answer))  # type: ignore[arg-type]

    async def more(self, calls: int) -> None:
        """Until this many calls more have been admitted."""
        enough = self.admitted + calls
        async with asyncio.timeout(30):
            while self.admitted < enough:
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def under_load(cluster: KillableCluster) -> AsyncIterator[LeaderLoad]:
    """Clients at work; when they have stopped, the table must say what they did."""
    load = LeaderLoad(cluster)
    await load.open_programs()
    clients = [asyncio.create_task(load.client()) for _ in range(CLIENTS)]
    try:
        await load.more(50)
        yield load
        await load.more(50)
        await stopped(cluster, load, clients)
        assert_same(await cluster.table(await cluster.leader()), load.truth)
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await load.client_library.close()


async def stopped(cluster: KillableCluster, load: LeaderLoad, clients: list[asyncio.Task[None]]) -> None:
    """Until every call has ended and is written down."""
    load.stopping = True
    async with asyncio.timeout(60):
        await asyncio.gather(*clients)
    await cluster.acknowledged()
    leader = cluster.planes[await cluster.leader()]
    await until(lambda: leader.metric("agentserving_store_pending_writes") == 0)


async def revision(cluster: KillableCluster) -> int:
    """Of etcd: every write makes another."""
    store = EtcdStore((cluster.etcd.endpoint,), PREFIX)
    found = (await store.load()).revision
    await store.close()
    return found


async def test_a_leader_paused_for_twice_its_lease_writes_nothing_more_and_follows() -> None:
    async with KillableCluster(planes=2, lease_s=3) as cluster:
        load = LeaderLoad(cluster)
        await load.open_programs()
        clients = [asyncio.create_task(load.client()) for _ in range(CLIENTS)]
        await load.more(50)
        old = await cluster.leader()
        paused = cluster.planes[old]
        # It has writes that wait, whenever it is caught, and more to come from clients it has taken in.
        paused.signal(signal.SIGSTOP)
        began = time.monotonic()
        new = await cluster.leader(but=old)
        await load.more(50)
        await asyncio.sleep(max(0.0, 6 - (time.monotonic() - began)))
        await stopped(cluster, load, clients)
        before = await revision(cluster)
        paused.signal(signal.SIGCONT)
        await until(lambda: "leads no longer" in paused.log.read_text())
        await cluster.follows(old)
        assert await revision(cluster) == before
        assert await cluster.leader() == new
        assert_same(await cluster.table(new), load.truth)
        await load.client_library.close()


async def test_a_leader_cut_off_from_etcd_stops_before_another_leads_and_follows_when_it_can() -> None:
    async with KillableCluster(planes=2, lease_s=3) as cluster, TcpProxy(cluster.etcd.endpoint) as network:
        first, second = cluster.planes
        # The first one's way to etcd is ours to cut; it leads, since the other comes later.
        cluster.planes[second].kill()
        cluster.planes[first].kill()
        cut_off = cluster.planes[first] = cluster.another_control_plane(
            listen=first, lease_s=3, etcd_endpoints=network.address
        )
        cut_off.start()
        assert await cluster.leader() == first
        cluster.planes[second].start()
        await cluster.follows(second)
        async with under_load(cluster) as load:
            network.cut()
            await until(lambda: "leads no longer" in cut_off.log.read_text())
            assert await cluster.leader() == second
            await load.more(50)
            network.mend()
            await cluster.follows(first)
        cut_off.kill()


async def test_a_leader_that_is_told_to_go_hands_over_at_once() -> None:
    async with KillableCluster(planes=2, lease_s=30) as cluster, under_load(cluster) as load:
        old = await cluster.leader()
        began = time.monotonic()
        cluster.planes[old].signal(signal.SIGTERM)
        await cluster.leader(but=old)
        handed_over_s = time.monotonic() - began
        process = cluster.planes[old].process
        assert process is not None
        assert await asyncio.to_thread(process.wait, 10) == 0
        print(f"handed over in {handed_over_s:.2f} s")
        assert handed_over_s < 3
        await load.more(50)


async def test_when_etcd_comes_back_after_more_than_a_lease_somebody_leads_again() -> None:
    async with KillableCluster(planes=2, lease_s=3) as cluster, under_load(cluster):
        old = await cluster.leader()
        await asyncio.to_thread(cluster.etcd.kill)
        await until(lambda: "leads no longer" in cluster.planes[old].log.read_text())
        assert all(plane.metric("agentserving_leader") != 1 for plane in cluster.planes.values())
        await asyncio.to_thread(cluster.etcd.start)
        await cluster.leader()


async def test_a_follower_names_the_leader_and_does_nothing_else() -> None:
    async with KillableCluster(planes=3, engines=1) as cluster:
        leader = await cluster.leader()
        for listen in set(cluster.planes) - {leader}:
            await cluster.follows(listen)
            assert cluster.planes[listen].get("/readyz") == (200, f"ok: {leader} leads\n")
            # The address that it names is found, though it was not given.
            async with AsyncClient(listen, settings=Settings(tls=None)) as client:
                await client.open_program(program_id=f"by way of {listen}".replace(" ", "-"))
                assert client.address == leader
        assert len(await cluster.table(leader)) == 2
