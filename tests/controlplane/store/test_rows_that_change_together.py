"""Rows that change together land together: no state of the store ever shows one of them without the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from agentserving_controlplane.store.gathering import Gathering
from agentserving_controlplane.store.group_commit import GroupCommit
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.store.port import (
    MAX_BATCH_BYTES,
    MAX_BATCH_WRITES,
    StoreUnavailableError,
    Write,
)
from hypothesis import given, settings
from hypothesis import strategies as st


class WatchedStore(MemoryStore):
    """Loses answers, dies after some commits, and looks at every state it goes through."""

    def __init__(self, dice: random.Random, dies_after: int) -> None:
        super().__init__()
        self._dice, self._left = dice, dies_after
        self.broken: list[str] = []
        self.dead = asyncio.Event()

    async def commit(self, epoch: int, writes: Sequence[Write]) -> int:
        assert len(writes) <= MAX_BATCH_WRITES
        assert sum(len(w.key) + len(w.value or b"") for w in writes) <= MAX_BATCH_BYTES
        assert len({w.key for w in writes}) == len(writes)
        if self._dice.random() < 0.1:
            raise StoreUnavailableError("no answer")
        if self._left == 0:
            self.dead.set()
            await asyncio.Event().wait()
        self._left -= 1
        revision = await super().commit(epoch, writes)
        self.broken += sums_that_are_wrong((await self.load()).items)
        if self._dice.random() < 0.1:
            raise StoreUnavailableError("answer lost")
        return revision


def sums_that_are_wrong(items: object) -> list[str]:
    """Roots whose account is not the sum of their children's counters."""
    assert hasattr(items, "items")
    sums: dict[str, int] = {}
    roots: dict[str, int] = {}
    for key, value in items.items():
        root, _, child = key.partition("/")
        number = int(value.split(b" ")[0])
        if child:
            sums[root] = sums.get(root, 0) + number
        else:
            roots[root] = number
    return [root for root in {*sums, *roots} if sums.get(root, 0) != roots.get(root, 0)]


async def charge_and_crash(seed: int) -> list[str]:
    dice = random.Random(seed)
    store = WatchedStore(dice, dice.randint(0, 12))
    commits = GroupCommit(store, await store.acquire("a"), interval_s=0.001)
    commits.start()
    counters: dict[str, int] = {}
    children, padding = dice.choice([3, 150, 400]), dice.choice([0, 20_000])
    for number in range(dice.randint(1, 600)):
        root = f"r{dice.randrange(3)}"
        child = f"{root}/{dice.randrange(children)}"
        for key in (child, root):
            counters[key] = counters.get(key, 0) + 1
        values = [Write(key, b"%d %s" % (counters[key], b"x" * padding)) for key in (child, root)]
        commits.put_together(values)
        if number % 50 == 0:
            await asyncio.sleep(0.002)
    ends = [asyncio.create_task(commits.flush()), asyncio.create_task(store.dead.wait())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in ends:
        task.cancel()
    await commits.close(0)
    if not store.dead.is_set():
        assert dict((await store.load()).items).keys() == counters.keys()
    return store.broken


@given(seed=st.integers(0, 1_000_000))
@settings(max_examples=25, deadline=None)
def test_a_crash_between_two_batches_never_parts_a_root_from_its_children(seed: int) -> None:
    assert asyncio.run(charge_and_crash(seed)) == []


def test_a_part_that_is_full_keeps_its_values_and_what_comes_then_is_gathered_anew() -> None:
    gathering = Gathering()
    for child in range(MAX_BATCH_WRITES - 1):
        assert gathering.take([Write(f"c{child}", b"1"), Write("root", b"%d" % child)], child)
    assert not gathering.take([Write("another", b"1"), Write("root", b"too late")], 100)
    assert gathering.take([Write("alone", b"1")], 101)
    (full, rest) = gathering.batches()
    assert (len(full), len(rest)) == (MAX_BATCH_WRITES, 1)
    assert gathering.values["root"] == b"%d" % (MAX_BATCH_WRITES - 2)
