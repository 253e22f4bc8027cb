"""Rows that change together land together: no state of the store ever shows one of them without the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence

import pytest
from agentserving_controlplane.store.group_commit import GroupCommit
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.store.port import (
    MAX_BATCH_BYTES,
    MAX_BATCH_WRITES,
    StoreUnavailableError,
    Write,
)
from agentserving_controlplane.store.write_buffer import LateWrite, WriteBuffer
from hypothesis import given, settings
from hypothesis import strategies as st


class WatchedStore(MemoryStore):
    """Loses answers, dies after some commits, and checks every state that it goes through."""

    def __init__(self, dice: random.Random, dies_after: int) -> None:
        super().__init__()
        self._dice, self._left = dice, dies_after
        self.broken: list[str] = []
        self.dead = asyncio.Event()

    async def commit(self, epoch: int, writes: Sequence[Write]) -> int:
        assert len(writes) <= MAX_BATCH_WRITES
        assert sum(w.size for w in writes) <= MAX_BATCH_BYTES
        assert len({w.key for w in writes}) == len(writes)
        if self._dice.random() < 0.1:
            raise StoreUnavailableError("no answer")
        if self._left == 0:
            self.dead.set()
            await asyncio.Event().wait()
        self._left -= 1
        # Others change rows while a batch is on its way.
        await asyncio.sleep(self._dice.choice([0, 0, 0.001]))
        revision = await super().commit(epoch, writes)
        self.broken += wrong_sums((await self.load()).items)
        if self._dice.random() < 0.1:
            raise StoreUnavailableError("answer lost")
        return revision


def wrong_sums(items: Mapping[str, bytes]) -> list[str]:
    """Roots whose account is not the sum of their children's counters."""
    sums: dict[str, int] = {}
    roots: dict[str, int] = {}
    for key, value in items.items():
        root, _, child = key.partition("/")
        number = int(value.split(b" ")[0])
        if child:
            sums[root] = sums.get(root, 0) + number
        elif not key.startswith("lonely"):
            roots[root] = number
    return [root for root in {*sums, *roots} if sums.get(root, 0) != roots.get(root, 0)]


class Workload:
    """Counters that change alone and together, encoded late or early."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.counters: dict[str, int] = {}
        self._children, self._padding = dice.choice([3, 150, 400]), dice.choice([0, 20_000])

    def write(self, key: str) -> Write | LateWrite:
        if self._dice.random() < 0.7:
            return LateWrite(key, lambda: self._value(key))
        return Write(key, self._value(key))

    def _value(self, key: str) -> bytes:
        return b"%d %s" % (self.counters[key], b"x" * self._padding)

    def step(self) -> list[Write | LateWrite]:
        """One change: a lonely row, a root without effect on its sum, or a root with one of its children."""
        dice = self._dice
        if dice.random() < 0.2:
            keys = [f"lonely{dice.randrange(3)}"]
        else:
            root = f"r{dice.randrange(3)}"
            keys = [root, f"{root}/{dice.randrange(self._children)}"]
            if dice.random() < 0.4 and root in self.counters:
                return [self.write(root)]
        for key in keys:
            self.counters[key] = self.counters.get(key, 0) + 1
        return [self.write(key) for key in keys]


async def charge_and_crash(seed: int) -> list[str]:
    dice = random.Random(seed)
    store = WatchedStore(dice, dice.randint(0, 12))
    commits = GroupCommit(store, await store.acquire("a"), interval_s=0.001)
    commits.start()
    workload = Workload(dice)
    for number in range(dice.randint(1, 600)):
        commits.put_together(workload.step())
        if number % 50 == 0:
            await asyncio.sleep(0.002)
    ends = [asyncio.create_task(commits.flush()), asyncio.create_task(store.dead.wait())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in ends:
        task.cancel()
    await commits.close(0)
    if not store.dead.is_set():
        landed = {key: int(value.split(b" ")[0]) for key, value in (await store.load()).items.items()}
        assert landed == workload.counters
    return store.broken


@given(seed=st.integers(0, 1_000_000))
@settings(max_examples=25, deadline=None)
def test_a_crash_between_two_batches_never_parts_a_root_from_its_children(seed: int) -> None:
    assert asyncio.run(charge_and_crash(seed)) == []


class Rows:
    """Values that change under their late writes."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    def late(self, key: str) -> LateWrite:
        self.values[key] = self.values.get(key, 0) + 1
        return LateWrite(key, lambda: b"%d" % self.values[key])


def landed(buffer: WriteBuffer) -> dict[str, bytes | None]:
    return {write.key: write.value for batch in buffer.batches() for write in batch}


def test_a_full_group_keeps_its_values_and_later_writes_go_to_another_buffer() -> None:
    buffer = WriteBuffer()
    for child in range(MAX_BATCH_WRITES - 1):
        assert buffer.add([Write(f"c{child}", b"1"), Write("root", b"%d" % child)], child)
    assert not buffer.add([Write("another", b"1"), Write("root", b"too late")], 100)
    (full,) = buffer.batches()
    assert len(full) == MAX_BATCH_WRITES
    assert landed(buffer)["root"] == b"%d" % (MAX_BATCH_WRITES - 2)


def full_group(buffer: WriteBuffer) -> int:
    """A group without room; the number of the next write."""
    for child in range(MAX_BATCH_WRITES - 1):
        assert buffer.add([Write(f"c{child}", b"1"), Write("root", b"1")], child + 10)
    return MAX_BATCH_WRITES + 9


def test_a_single_row_that_joins_a_full_group_lands_later_and_is_not_durable_before() -> None:
    buffer, rows = WriteBuffer(), Rows()
    assert buffer.add([rows.late("alone")], 1)
    number = full_group(buffer)
    assert not buffer.add([rows.late("alone"), Write("root", b"2")], number)
    assert "alone" not in landed(buffer)
    assert buffer.through == 0


def test_rows_in_no_group_are_encoded_when_the_buffer_is_closed() -> None:
    buffer, rows = WriteBuffer(), Rows()
    assert buffer.add([rows.late("alone")], 1)
    number = full_group(buffer)
    assert not buffer.add([Write("another", b"1"), Write("root", b"2")], number)
    # This change belongs to the next buffer, with others.
    rows.late("alone")
    assert landed(buffer)["alone"] == b"1"
    assert buffer.through == number - 1


def test_batches_are_packed() -> None:
    buffer = WriteBuffer()
    for number in range(250):
        assert buffer.add([Write(f"k{number}", b"")], number)
    assert [len(batch) for batch in buffer.batches()] == [100, 100, 50]
    assert len(buffer) == 250


@pytest.mark.parametrize("late", [False, True])
def test_of_a_key_only_the_last_value_lands(late: bool) -> None:
    buffer, rows = WriteBuffer(), Rows()
    for number in range(10):
        write = rows.late("k")
        assert buffer.add([write if late else Write("k", b"%d" % (number + 1))], number)
    assert buffer.add([Write("other", b""), rows.late("k")], 11)
    assert landed(buffer) == {"k": b"11", "other": b""}
    assert len(buffer) == 2
