"""The etcd store when etcd fails: killed, frozen, full, compacted, with members that lost their volumes."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from agentserving_controlplane.store.etcd import client
from agentserving_controlplane.store.etcd import wire_pb2 as pb
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.store.group_commit import GroupCommit
from agentserving_controlplane.store.port import (
    FencedError,
    RejectedWriteError,
    StoreUnavailableError,
    Write,
)
from controlplane.store.etcd_members import EtcdMembers
from support.etcd_server import EtcdServer, unused_endpoint

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(240)]
_numbers = itertools.count()
QUOTA = 16 << 20


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    server = EtcdServer()
    server.start()
    yield server
    server.close()


def new_store(server: EtcdServer, lease_s: int = 5) -> EtcdStore:
    return EtcdStore((server.endpoint,), f"/t/{next(_numbers)}", lease_s=lease_s)


async def until(condition: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def test_writes_wait_for_a_killed_etcd_and_land_when_it_is_back(etcd: EtcdServer) -> None:
    store = new_store(etcd, lease_s=60)
    commits = GroupCommit(store, await store.acquire("a"), interval_s=0.01)
    commits.start()
    await commits.durable(commits.put_together([Write("k0", b"before")]))
    await asyncio.to_thread(etcd.kill)
    for number in range(1, 10):
        commits.put_together([Write(f"k{number}", b"while away")])
    await until(lambda: not commits.healthy, "the loss of etcd is not reported")
    assert commits.pending == 9
    await asyncio.to_thread(etcd.start)
    async with asyncio.timeout(60):
        await commits.flush()
    assert len((await store.load()).items) == 10
    await commits.close()
    await store.close()


async def test_a_load_starts_again_when_its_revision_is_compacted(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE_KEYS", 10)
    store = new_store(etcd)
    epoch = await store.acquire("a")
    for value in (b"old", b"new"):
        at = await store.commit(epoch, [Write(f"k{i:02}", value) for i in range(50)])
    call, calls = store._client.call, 0

    async def interrupted(name: str, request: object, timeout_s: float) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            now = await store.commit(epoch, [Write(f"k{i:02}", b"newest") for i in range(50)])
            assert now > at
            await etcd.compact(now)
        return await call(name, request, timeout_s)

    monkeypatch.setattr(store._client, "call", interrupted)
    snapshot = await store.load()
    assert snapshot.items == {f"k{i:02}": b"newest" for i in range(50)}
    assert calls > 6
    await store.close()


# -- the lease ------------------------------------------------------------------------------------------------------


async def test_a_lease_lasts_while_it_is_kept_and_ends_by_the_holder_s_clock_before_another_has_it(
    etcd: EtcdServer,
) -> None:
    prefix = f"/t/{next(_numbers)}"
    holder, candidate = (EtcdStore((etcd.endpoint,), prefix, lease_s=2) for _ in range(2))
    epoch = await holder.acquire("holder")
    keeping = asyncio.create_task(holder.keep_lease())
    campaign = asyncio.create_task(candidate.acquire("candidate"))
    await asyncio.wait({campaign, keeping}, timeout=5)
    assert not campaign.done()
    assert holder.holds(epoch)
    keeping.cancel()
    async with asyncio.timeout(30):
        while holder.holds(epoch):
            assert not campaign.done()
            await asyncio.sleep(0.01)
        await campaign
    await holder.close()
    await candidate.close()


async def test_a_holder_that_cannot_renew_is_notified_within_the_lease(etcd: EtcdServer) -> None:
    store = new_store(etcd, lease_s=2)
    epoch = await store.acquire("holder")
    etcd.signal(signal.SIGSTOP)
    try:
        with pytest.raises(FencedError, match="could not be renewed"):
            await asyncio.wait_for(store.keep_lease(), 10)
        assert not store.holds(epoch)
    finally:
        etcd.signal(signal.SIGCONT)
    await store.close()


async def test_a_candidate_survives_the_compaction_of_what_it_watches_and_a_restart(etcd: EtcdServer) -> None:
    prefix = f"/t/{next(_numbers)}"
    holder, candidate = (EtcdStore((etcd.endpoint,), prefix, lease_s=60) for _ in range(2))
    epoch = await holder.acquire("holder")
    holders: list[str] = []
    campaign = asyncio.create_task(candidate.acquire("candidate", holders.append))
    await until(lambda: bool(holders), "the candidate does not see the holder")
    await etcd.compact(await holder.commit(epoch, [Write("k", b"")]))
    await asyncio.to_thread(etcd.kill)
    await asyncio.to_thread(etcd.start)
    await holder.commit(epoch, [Write("k", b"2")])
    assert not campaign.done()
    await holder.resign(30)
    assert await asyncio.wait_for(campaign, 60) > epoch
    await holder.close()
    await candidate.close()


async def test_a_leader_key_without_a_lease_is_an_older_version_s_and_is_taken(etcd: EtcdServer) -> None:
    store = new_store(etcd)
    put = pb.PutRequest(key=f"{store.prefix}/leader".encode(), value=b"host \xff\xfe 0123")
    await store._client.txn(pb.TxnRequest(success=[pb.RequestOp(request_put=put)]))
    epoch = await asyncio.wait_for(store.acquire("new"), 30)
    await store.commit(epoch, [Write("k", b"")])
    await store.close()


async def test_without_an_etcd_the_error_comes_within_the_deadline() -> None:
    store = EtcdStore((unused_endpoint(),), "/t/none")
    with pytest.raises(StoreUnavailableError, match="etcd Range"):
        await store.acquire("a")
    await store.close()


async def test_a_channel_that_is_closed_under_a_call_is_no_cancellation_of_the_caller(etcd: EtcdServer) -> None:
    """As when certificates change: gRPC raises CancelledError in calls of the old channel."""
    store = new_store(etcd)
    epoch = await store.acquire("a")
    etcd.signal(signal.SIGSTOP)
    try:
        committing = asyncio.create_task(store.commit(epoch, [Write("k", b"")]))
        await asyncio.sleep(0.2)
        old = store._client._endpoints[0]
        store._client._endpoints[0] = client._Endpoint(old.target, None)
        await old.channel.close()
    finally:
        etcd.signal(signal.SIGCONT)
    await asyncio.wait_for(committing, 30)
    await store.close()


async def test_a_request_larger_than_this_etcd_takes_is_rejected(etcd: EtcdServer) -> None:
    tight = EtcdServer("--max-request-bytes", "100000")
    await asyncio.to_thread(tight.start)
    try:
        store = new_store(tight)
        epoch = await store.acquire("a")
        with pytest.raises(RejectedWriteError, match="too large"):
            await store.commit(epoch, [Write("k", b"x" * 200_000)])
        await store.close()
    finally:
        await asyncio.to_thread(tight.close)


async def test_a_lease_that_expires_before_its_key_is_written_is_granted_again(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(etcd)
    grant, grants = store._client.grant, 0

    async def granted_and_gone(ttl_s: int, timeout_s: float = 5.0) -> pb.LeaseGrantResponse:
        nonlocal grants
        grants += 1
        lease = await grant(ttl_s, timeout_s)
        if grants == 1:
            await store._client.revoke(lease.ID)
        return lease

    monkeypatch.setattr(store._client, "grant", granted_and_gone)
    await store.commit(await store.acquire("a"), [Write("k", b"")])
    assert grants == 2
    await store.close()


# -- members --------------------------------------------------------------------------------------------------------


async def test_a_member_that_lost_its_volume_and_rejoined_serves_again_and_nothing_is_lost() -> None:
    members = EtcdMembers()
    try:
        await asyncio.to_thread(members.start)
        store = EtcdStore(members.endpoints, "/t", lease_s=60)
        epoch = await store.acquire("a")
        commits = GroupCommit(store, epoch, interval_s=0.005)
        commits.start()
        written: list[str] = []

        async def writing() -> None:
            for number in itertools.count():
                await commits.durable(commits.put_together([Write(f"k{number}", b"")]))
                written.append(f"k{number}")

        task = asyncio.create_task(writing())
        await until(lambda: len(written) > 20, "no writes land")
        await asyncio.to_thread(members.lose, "m0")
        count = len(written)
        await until(lambda: len(written) > count + 20, "no writes land without the member")
        await asyncio.to_thread(members.rejoin, "m0")
        # The next calls go to the rejoined member.
        store._client._current = 0
        count = len(written)
        await until(lambda: len(written) > count + 20, "no writes land through the rejoined member")
        assert commits.fenced is None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert set(written) <= (await store.load()).items.keys()
        await commits.close()
        await store.close()
    finally:
        await asyncio.to_thread(members.close)
