"""What every store promises, checked against the store in memory and against a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.store.port import (
    MAX_BATCH_WRITES,
    MAX_COMMIT_BYTES,
    FencedError,
    RejectedWriteError,
    Store,
    Write,
)
from support.etcd_server import EtcdServer

pytestmark = pytest.mark.etcd
_numbers = itertools.count()
# Longer than any test waits: no test passes because a lease has expired.
LEASE_S = 120


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    server = EtcdServer()
    server.start()
    yield server
    server.close()


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        store: Store = MemoryStore()
    else:
        store = EtcdStore((request.getfixturevalue("etcd").endpoint,), f"/t/{next(_numbers)}", lease_s=LEASE_S)
    yield store
    await store.close()


def another(store: Store) -> Store:
    """The same data in another process; in memory there is only one."""
    if isinstance(store, EtcdStore):
        return EtcdStore(store.endpoints, store.prefix, lease_s=LEASE_S)
    return store


async def test_a_commit_lands_whole_and_is_read_in_the_order_of_keys(store: Store) -> None:
    epoch = await store.acquire("a")
    await store.commit(epoch, [Write("b", b"2"), Write("a", b"1"), Write("x/c", b"3")])
    await store.commit(epoch, [Write("b", None)])
    snapshot = await store.load()
    assert list(snapshot.items.items()) == [("a", b"1"), ("x/c", b"3")]
    assert dict((await store.load("x/")).items) == {"x/c": b"3"}


async def test_revisions_of_commits_grow(store: Store) -> None:
    epoch = await store.acquire("a")
    revisions = [await store.commit(epoch, [Write("k", b"%d" % number)]) for number in range(5)]
    assert revisions == sorted(set(revisions))
    assert (await store.load()).revision >= revisions[-1]


async def test_a_candidate_waits_until_the_holder_resigns_and_fences_it(store: Store) -> None:
    old = await store.acquire("a 1")
    assert store.holds(old)
    holders: list[str] = []
    candidate = another(store)
    campaign = asyncio.create_task(candidate.acquire("b 2", holders.append))
    async with asyncio.timeout(60):
        while not holders:
            await asyncio.sleep(0.01)
    await store.commit(old, [Write("k", b"old")])
    assert not campaign.done()
    assert holders == ["a 1"]
    await store.resign()
    new = await asyncio.wait_for(campaign, 60)
    assert new > old
    assert candidate.holds(new)
    assert not store.holds(old)
    with pytest.raises(FencedError):
        await store.commit(old, [Write("k", b"older")])
    await candidate.commit(new, [Write("k", b"new")])
    assert (await store.load()).items["k"] == b"new"
    await candidate.close()


async def test_a_holder_that_resigned_is_fenced_even_without_a_successor(store: Store) -> None:
    epoch = await store.acquire("a")
    await store.resign()
    with pytest.raises(FencedError):
        await store.commit(epoch, [Write("k", b"")])


async def test_a_process_takes_over_the_lease_of_its_predecessor_without_waiting(store: Store) -> None:
    old = await store.acquire("same name")
    successor = another(store)
    new = await asyncio.wait_for(successor.acquire("same name"), LEASE_S / 2)
    assert new > old
    with pytest.raises(FencedError):
        await store.commit(old, [Write("k", b"old")])
    await successor.commit(new, [Write("k", b"new")])
    await successor.close()


async def test_one_candidate_at_a_time_holds_the_lease_and_epochs_grow(store: Store) -> None:
    epochs: list[int] = []

    async def candidate(name: str) -> None:
        process = another(store)
        epoch = await process.acquire(name)
        await process.commit(epoch, [Write("leader", name.encode())])
        assert epochs == sorted(epochs)
        epochs.append(epoch)
        assert (await process.load()).items["leader"] == name.encode()
        await process.resign()
        if process is not store:
            await process.close()

    async with asyncio.timeout(60):
        await asyncio.gather(*(candidate(f"c{number}") for number in range(8)))
    assert len(set(epochs)) == 8
    assert epochs == sorted(epochs)


async def test_a_holder_that_loses_its_lease_is_notified(store: Store) -> None:
    await store.acquire("same name")
    keeping = asyncio.create_task(store.keep_lease())
    await asyncio.sleep(0)
    successor = another(store)
    await successor.acquire("same name")
    with pytest.raises(FencedError):
        await asyncio.wait_for(keeping, 60)
    await successor.close()


async def test_a_load_of_many_pages_is_of_one_revision(store: Store) -> None:
    epoch = await store.acquire("a")
    for at in range(0, 2500, 100):
        await store.commit(epoch, [Write(f"k{i:05}", b"0") for i in range(at, at + 100)])

    async def disturb() -> None:
        for i in range(0, 2500, 50):
            await store.commit(epoch, [Write("k00000", b"%d" % i), Write("k02499", b"%d" % i)])

    task = asyncio.create_task(disturb())
    snapshot = await store.load()
    await task
    assert len(snapshot.items) == 2500
    assert snapshot.items["k00000"] == snapshot.items["k02499"]


TOO_LARGE = {
    "a value": [Write("k", b"x" * (MAX_COMMIT_BYTES + 1))],
    "many values": [Write(f"k{number}", b"x" * 100_000) for number in range(20)],
    "a key": [Write("k" * (MAX_COMMIT_BYTES + 1), b"")],
    "too many writes": [Write(f"k{number}", b"") for number in range(MAX_BATCH_WRITES + 1)],
    "a key twice": [Write("k", b"1"), Write("k", b"2")],
}


@pytest.mark.parametrize("writes", TOO_LARGE.values(), ids=TOO_LARGE.keys())
async def test_a_batch_that_cannot_land_is_rejected_as_such(store: Store, writes: list[Write]) -> None:
    """As StoreUnavailableError it would be repeated for ever."""
    epoch = await store.acquire("a")
    with pytest.raises(RejectedWriteError):
        await store.commit(epoch, writes)
    assert not (await store.load()).items
    await store.commit(epoch, [Write("k", b"the store still works")])


async def test_the_largest_batch_lands(store: Store) -> None:
    epoch = await store.acquire("a")
    share = MAX_COMMIT_BYTES // MAX_BATCH_WRITES
    await store.commit(epoch, [Write(f"k{number:03}", b"x" * (share - 4)) for number in range(MAX_BATCH_WRITES)])
    assert len((await store.load()).items) == MAX_BATCH_WRITES


async def test_closing_twice_is_harmless(store: Store) -> None:
    await store.acquire("a")
    await store.close()
    with contextlib.suppress(Exception):
        await store.resign()
