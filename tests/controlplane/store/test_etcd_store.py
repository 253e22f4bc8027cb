"""The etcd store when etcd fails: killed, frozen, full, compacted, with members that lost their volumes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from agentserving_controlplane.store.etcd import client, space
from agentserving_controlplane.store.etcd import wire_pb2 as pb
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.store.group_commit import GroupCommit
from agentserving_controlplane.store.port import (
    MAX_BATCH_WRITES,
    FencedError,
    RejectedWriteError,
    StoreFullError,
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


@pytest.fixture
def small() -> Iterator[EtcdServer]:
    """An etcd with a small quota of its own."""
    server = EtcdServer("--quota-backend-bytes", str(QUOTA))
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


# -- space ----------------------------------------------------------------------------------------------------------


async def fill(store: EtcdStore, epoch: int) -> None:
    """Writes until etcd raises its alarm; the history does it, not the data."""
    for number in itertools.count():
        assert number < 400
        await store.commit(epoch, [Write("big", os.urandom(400_000))])


async def test_a_full_etcd_is_reported_and_heals_by_itself(small: EtcdServer) -> None:
    store = new_store(small, lease_s=60)
    epoch = await store.acquire("a")
    with pytest.raises(StoreFullError, match=r"database space exceeded.*compacted to revision.*alarms disarmed"):
        await fill(store, epoch)
    await store.commit(epoch, [Write("after", b"1")])
    assert (await store.load()).items["after"] == b"1"
    await store.close()


async def test_a_tended_etcd_is_never_full_of_history_and_says_how_much_its_data_needs(
    small: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This etcd is filled in half a second.
    monkeypatch.setattr(space, "COMPACT_AGAIN_S", 0.0)
    monkeypatch.setattr(space, "AGAIN_S", 0.0)
    store = EtcdStore((small.endpoint,), "/tended", lease_s=60, quota_bytes=QUOTA)
    epoch = await store.acquire("a")

    async def becomes_less(share: float, within_s: float) -> bool:
        """etcd frees what was compacted a moment later."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while await store.tend() >= share:
                    await asyncio.sleep(0.05)
                return True
        return False

    # Between two looks no more is written than is left above the size from which the file is defragmented.
    for _ in range(150):
        await store.commit(epoch, [Write("big", os.urandom(400_000))])
        assert await becomes_less(0.5, 30)
    number = 0
    while await becomes_less(0.8, 2):
        number += 1
        await store.commit(epoch, [Write(f"k{number}", os.urandom(100_000))])
    assert number * 100_000 >= 0.7 * QUOTA, "it is the data that needs the space, after three quotas of history"
    await store.commit(epoch, [Write("small", b"")])
    for first in range(1, number, MAX_BATCH_WRITES):
        await store.commit(epoch, [Write(f"k{each}", None) for each in range(first, first + MAX_BATCH_WRITES)])
    assert await becomes_less(0.5, 30)
    await store.close()


async def test_the_history_of_others_is_not_compacted_early_but_counted(small: EtcdServer) -> None:
    store = EtcdStore((small.endpoint,), "/tended", lease_s=60, quota_bytes=QUOTA)
    foreign = pb.PutRequest(key=b"/registry/pods/x", value=b"")
    await store._client.txn(pb.TxnRequest(success=[pb.RequestOp(request_put=foreign)]))
    epoch = await store.acquire("a")
    before = (await store.load()).revision
    while await store.tend() < 0.8:
        # None fails. etcd knows its size every 100 ms, so they are not too large for that.
        await store.commit(epoch, [Write("big", os.urandom(100_000))])
    request = pb.RangeRequest(key=b"/registry/pods/x", revision=before)
    assert (await store._client.call("Range", request, 5)).kvs
    await store.close()


async def test_writes_of_a_leader_wait_while_etcd_is_full_and_land_after_it_healed(small: EtcdServer) -> None:
    store = new_store(small, lease_s=60)
    epoch = await store.acquire("a")
    commits = GroupCommit(store, epoch, interval_s=0.001)
    commits.start()
    keeping = asyncio.create_task(store.keep_lease())
    async with asyncio.timeout(180):
        for number in range(100):
            await commits.durable(commits.put_together([Write("big", os.urandom(400_000)), Write(f"k{number}", b"")]))
    keeping.cancel()
    assert commits.healthy
    assert len((await store.load()).items) == 101
    await commits.close()
    await store.close()


async def test_a_candidate_heals_a_full_etcd_since_no_lease_can_be_granted_there(
    small: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new_store(small, lease_s=60)
    epoch = await first.acquire("a")
    monkeypatch.setattr(first._space, "_not_before_s", float("inf"))
    with pytest.raises(StoreFullError, match="see the log"):
        await fill(first, epoch)
    await first.resign()
    second = EtcdStore((small.endpoint,), first.prefix, lease_s=60)
    with pytest.raises(StoreFullError, match="alarms disarmed"):
        await second.acquire("b")
    await second.commit(await second.acquire("b"), [Write("k", b"")])
    await first.close()
    await second.close()


async def test_the_history_of_others_is_left_alone(small: EtcdServer) -> None:
    store = new_store(small, lease_s=60)
    foreign = pb.PutRequest(key=b"/registry/pods/x", value=b"")
    await store._client.txn(pb.TxnRequest(success=[pb.RequestOp(request_put=foreign)]))
    epoch = await store.acquire("a")
    before = (await store.load()).revision
    with pytest.raises(StoreFullError, match="1 keys in this etcd are not agentserving's"):
        await fill(store, epoch)
    # Still readable at an old revision: nothing was compacted.
    request = pb.RangeRequest(key=b"/registry/pods/x", revision=before)
    assert (await store._client.call("Range", request, 5)).kvs
    await store.close()


async def test_data_that_exceeds_the_quota_is_not_defragmented_in_a_loop(
    small: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(small, lease_s=60)
    epoch = await store.acquire("a")
    reclaims = 0
    reclaim = space.Space._reclaim

    async def counted(self: space.Space) -> tuple[float, str]:
        nonlocal reclaims
        reclaims += 1
        return await reclaim(self)

    monkeypatch.setattr(space.Space, "_reclaim", counted)
    failures = 0
    for number in range(100):
        try:
            await store.commit(epoch, [Write(f"k{number}", os.urandom(400_000))])
        except StoreFullError:
            failures += 1
    assert failures > 5
    assert reclaims == 1
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


async def test_all_members_are_defragmented(monkeypatch: pytest.MonkeyPatch) -> None:
    members = EtcdMembers("--quota-backend-bytes", str(QUOTA))
    try:
        await asyncio.to_thread(members.start)
        store = EtcdStore(members.endpoints, "/t", lease_s=60)
        epoch = await store.acquire("a")
        order: list[str] = []
        call_at = store._client.call_at

        async def watched(index: int, name: str, request: object, timeout_s: float) -> object:
            if name == "Defragment":
                status = await call_at(index, "Status", pb.StatusRequest(), 5)
                order.append("leader" if status.leader == status.header.member_id else "follower")
            return await call_at(index, name, request, timeout_s)

        monkeypatch.setattr(store._client, "call_at", watched)
        with pytest.raises(StoreFullError, match="alarms disarmed"):
            await fill(store, epoch)
        assert order == ["follower", "follower", "leader"]
        await store.commit(epoch, [Write("after", b"1")])
        await store.close()
    finally:
        await asyncio.to_thread(members.close)


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
