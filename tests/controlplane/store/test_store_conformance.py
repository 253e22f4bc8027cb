"""What every store promises, held against memory and against a real etcd; and what group commit adds."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from agentserving_controlplane.store.etcd import client
from agentserving_controlplane.store.etcd import wire_pb2 as pb
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.store.group_commit import GroupCommit
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.store.port import (
    Change,
    CompactedError,
    FencedError,
    PendingLimitError,
    Store,
    StoreUnavailableError,
    Write,
)
from support.etcd_server import EtcdServer, unused_endpoint

pytestmark = pytest.mark.etcd
_names = iter(range(1_000_000))


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    server = EtcdServer()
    server.start()
    yield server
    server.close()


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        made: Store = MemoryStore(history=50)
    else:
        made = EtcdStore((request.getfixturevalue("etcd").endpoint,), f"/t/{next(_names)}")
    yield made
    await made.close()


def another(store: Store) -> Store:
    """Of another process: in memory there is only one."""
    if isinstance(store, EtcdStore):
        return EtcdStore(store.endpoints, store.prefix)
    return store


async def test_a_commit_lands_whole_and_in_order_of_keys(store: Store) -> None:
    epoch = await store.acquire("a")
    await store.commit(epoch, [Write("b", b"2"), Write("a", b"1"), Write("x/c", b"3")])
    await store.commit(epoch, [Write("b", None)])
    snapshot = await store.load()
    assert list(snapshot.items.items()) == [("a", b"1"), ("x/c", b"3")]
    assert dict((await store.load("x/")).items) == {"x/c": b"3"}


async def test_a_candidate_waits_until_the_writer_resigns_and_fences_it(store: Store) -> None:
    old = await store.acquire("a 1")
    assert store.holds(old)
    heard: list[str] = []
    candidate = another(store)
    campaign = asyncio.create_task(candidate.acquire("b 2", heard.append))
    async with asyncio.timeout(10):
        while not heard:
            await asyncio.sleep(0.01)
    await store.commit(old, [Write("k", b"old")])
    assert not campaign.done()
    assert heard == ["a 1"]
    await store.resign()
    new = await asyncio.wait_for(campaign, 2)
    assert new > old
    assert candidate.holds(new)
    assert not store.holds(old)
    with pytest.raises(FencedError):
        await store.commit(old, [Write("k", b"older")])
    await candidate.commit(new, [Write("k", b"new")])
    assert (await store.load()).items["k"] == b"new"
    await candidate.close()


async def test_a_writer_that_has_resigned_is_fenced_though_nobody_follows(store: Store) -> None:
    epoch = await store.acquire("a")
    await store.resign()
    with pytest.raises(FencedError):
        await store.commit(epoch, [Write("k", b"")])


async def test_a_process_takes_the_claim_of_its_predecessor_at_once(store: Store) -> None:
    old = await store.acquire("same name")
    successor = another(store)
    new = await asyncio.wait_for(successor.acquire("same name"), 2)
    assert new > old
    with pytest.raises(FencedError):
        await store.commit(old, [Write("k", b"old")])
    await successor.commit(new, [Write("k", b"new")])
    await successor.close()


async def test_of_many_candidates_one_at_a_time_has_the_claim_and_epochs_grow(store: Store) -> None:
    epochs: list[int] = []

    async def candidate(name: str) -> None:
        made = another(store)
        epoch = await made.acquire(name)
        await made.commit(epoch, [Write("leader", name.encode())])
        assert epochs == sorted(epochs)
        epochs.append(epoch)
        assert (await made.load()).items["leader"] == name.encode()
        await made.resign()
        if made is not store:
            await made.close()

    async with asyncio.timeout(30):
        await asyncio.gather(*(candidate(f"c{number}") for number in range(8)))
    assert len(set(epochs)) == 8
    assert epochs == sorted(epochs)


async def test_a_writer_that_loses_its_claim_hears_of_it(store: Store) -> None:
    await store.acquire("same name")
    holding = asyncio.create_task(store.hold())
    await asyncio.sleep(0)
    successor = another(store)
    await successor.acquire("same name")
    with pytest.raises(FencedError):
        await asyncio.wait_for(holding, 10)
    await successor.close()


async def test_a_watch_gives_every_later_commit_once(store: Store) -> None:
    epoch = await store.acquire("a")
    start = await store.commit(epoch, [Write("before", b"")])
    for number in range(20):
        await store.commit(epoch, [Write("k", b"%d" % number), Write("other", b"")])
    seen: list[Change] = []
    async with asyncio.timeout(20):
        async for change in store.watch(start, "k"):
            seen.append(change)
            if len(seen) == 20:
                break
    assert [c.writes for c in seen] == [(Write("k", b"%d" % n),) for n in range(20)]
    assert [c.revision for c in seen] == sorted({c.revision for c in seen})


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


async def test_the_memory_store_says_when_history_is_gone() -> None:
    store = MemoryStore(history=2)
    epoch = await store.acquire("a")
    for _ in range(5):
        await store.commit(epoch, [Write("k", b"")])
    with pytest.raises(CompactedError):
        await anext(store.watch(1))


async def test_an_etcd_watch_and_a_writer_survive_its_kill(etcd: EtcdServer) -> None:
    store = EtcdStore((etcd.endpoint,), f"/t/{next(_names)}")
    epoch = await store.acquire("a")
    start = (await store.load()).revision
    seen: list[Write] = []

    async def watch() -> None:
        async for change in store.watch(start):
            seen.extend(change.writes)

    task = asyncio.create_task(watch())
    commits = GroupCommit(store, epoch, interval_s=0.01)
    commits.start()
    for number in range(10):
        commits.put(f"k{number}", b"before")
    await commits.flush()
    await asyncio.to_thread(etcd.kill)
    for number in range(10, 20):
        commits.put(f"k{number}", b"while away")
    assert commits.pending == 10
    await asyncio.to_thread(etcd.start)
    async with asyncio.timeout(30):
        await commits.flush()
        while len(seen) < 20:
            await asyncio.sleep(0.02)
    assert sorted(w.key for w in seen) == sorted(f"k{n}" for n in range(20))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await commits.close()
    await store.close()


async def test_a_load_begins_again_when_its_revision_is_compacted_away(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE_KEYS", 10)
    store = EtcdStore((etcd.endpoint,), f"/t/{next(_names)}")
    epoch = await store.acquire("a")
    for value in (b"old", b"new"):
        at = await store.commit(epoch, [Write(f"k{i:02}", value) for i in range(50)])
    ask, asked = store._client._call, 0

    async def interrupted(name: str, request: object, timeout_s: float) -> object:
        nonlocal asked
        asked += 1
        if asked == 3:
            now = await store.commit(epoch, [Write(f"k{i:02}", b"newest") for i in range(50)])
            assert now > at
            await etcd.compact(now)
        return await ask(name, request, timeout_s)

    monkeypatch.setattr(store._client, "_call", interrupted)
    snapshot = await store.load()
    assert snapshot.items == {f"k{i:02}": b"newest" for i in range(50)}
    assert asked > 6
    await store.close()


async def test_a_claim_lasts_while_it_is_kept_and_ends_by_the_owners_clock_before_another_has_it(
    etcd: EtcdServer,
) -> None:
    prefix = f"/t/{next(_names)}"
    owner, candidate = (EtcdStore((etcd.endpoint,), prefix, lease_s=2) for _ in range(2))
    epoch = await owner.acquire("owner")
    holding = asyncio.create_task(owner.hold())
    campaign = asyncio.create_task(candidate.acquire("candidate"))
    await asyncio.wait({campaign, holding}, timeout=5)
    assert not campaign.done()
    assert owner.holds(epoch)
    holding.cancel()
    async with asyncio.timeout(10):
        while owner.holds(epoch):
            assert not campaign.done()
            await asyncio.sleep(0.01)
        await campaign
    await owner.close()
    await candidate.close()


async def test_an_owner_that_cannot_renew_hears_of_it_within_the_lease(etcd: EtcdServer) -> None:
    store = EtcdStore((etcd.endpoint,), f"/t/{next(_names)}", lease_s=2)
    epoch = await store.acquire("owner")
    etcd.signal(signal.SIGSTOP)
    try:
        with pytest.raises(FencedError, match="could not be renewed"):
            await asyncio.wait_for(store.hold(), 2.5)
        assert not store.holds(epoch)
    finally:
        etcd.signal(signal.SIGCONT)
    await store.close()


async def test_a_claim_without_a_lease_is_an_older_versions_and_is_taken(etcd: EtcdServer) -> None:
    prefix = f"/t/{next(_names)}"
    old = client.EtcdClient((etcd.endpoint,))
    put = pb.PutRequest(key=f"{prefix}/leader".encode(), value=b"host 0123")
    await old.txn(pb.TxnRequest(success=[pb.RequestOp(put=put)]))
    store = EtcdStore((etcd.endpoint,), prefix)
    epoch = await asyncio.wait_for(store.acquire("new"), 5)
    await store.commit(epoch, [Write("k", b"")])
    await store.close()
    await old.close()


async def test_no_etcd_is_said_so_within_the_deadline() -> None:
    store = EtcdStore((unused_endpoint(),), "/t/none")
    with pytest.raises(StoreUnavailableError, match="etcd Txn"):
        await store.acquire("a")
    await store.close()


class FlakyStore(MemoryStore):
    """Fails as told; a failure may come before or after the write has landed."""

    def __init__(self, failures: list[str]) -> None:
        super().__init__()
        self.failures = failures

    async def commit(self, epoch: int, writes: object) -> int:
        mode = self.failures.pop(0) if self.failures else ""
        if mode == "lost":
            raise StoreUnavailableError("no answer")
        revision = await super().commit(epoch, writes)  # type: ignore[arg-type]
        if mode == "landed":
            raise StoreUnavailableError("answer lost")
        return revision


async def test_group_commit_lands_the_last_values_whatever_fails() -> None:
    store = FlakyStore(["lost", "landed", "", "landed", "lost"])
    commits = GroupCommit(store, await store.acquire("a"), interval_s=0.001)
    commits.start()
    for number in range(350):
        commits.put(f"k{number % 130}", b"%d" % number)
    await commits.flush()
    wanted = {f"k{number % 130}": b"%d" % number for number in range(350)}
    assert dict((await store.load()).items) == wanted
    assert commits.healthy
    await commits.close()


async def test_group_commit_refuses_beyond_its_bound_and_forgets_nothing() -> None:
    store = FlakyStore(["lost"] * 3)
    commits = GroupCommit(store, await store.acquire("a"), max_pending=5)
    for number in range(5):
        commits.put(f"k{number}", b"")
    with pytest.raises(PendingLimitError, match="wait for the store"):
        commits.put("k5", b"")
    commits.put("k0", b"a key that waits already may change")
    commits.put("k6", b"forced", force=True)
    commits.start()
    await commits.flush()
    assert len((await store.load()).items) == 6
    await commits.close()


async def test_a_fenced_group_commit_says_so_to_those_who_wait() -> None:
    store = MemoryStore()
    commits = GroupCommit(store, await store.acquire("a"), interval_s=0.001)
    await store.resign()
    commits.start()
    with pytest.raises(FencedError):
        await commits.durable(commits.put("k", b""))
    await commits.close()
