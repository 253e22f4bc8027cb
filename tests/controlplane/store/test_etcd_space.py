"""The space of etcd: full, nearly full, of history and of data, ours and others'."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Iterator

import pytest
from agentserving_controlplane.store.etcd import space
from agentserving_controlplane.store.etcd import wire_pb2 as pb
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.store.group_commit import GroupCommit
from agentserving_controlplane.store.port import (
    MAX_BATCH_WRITES,
    StoreFullError,
    Write,
)
from controlplane.store.etcd_members import EtcdMembers
from support.etcd_server import EtcdServer

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(240)]
_numbers = itertools.count()
QUOTA = 16 << 20


@pytest.fixture
def small() -> Iterator[EtcdServer]:
    """An etcd with a small quota of its own."""
    # Writes are in the file when they are answered, not 100 ms later: a fast loop would write half a quota unseen.
    server = EtcdServer("--quota-backend-bytes", str(QUOTA), "--backend-batch-limit", "1")
    server.start()
    yield server
    server.close()


def new_store(server: EtcdServer, lease_s: int = 5) -> EtcdStore:
    return EtcdStore((server.endpoint,), f"/t/{next(_numbers)}", lease_s=lease_s)


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
