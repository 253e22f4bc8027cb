"""Group commit: the last values land whatever fails, and what can never land ends the leadership with a reason."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest
from agentserving_controlplane.store.group_commit import GroupCommit
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.store.port import (
    MAX_COMMIT_BYTES,
    FencedError,
    StoreUnavailableError,
    Write,
)
from agentserving_controlplane.store.write_buffer import LateWrite


class ScriptedStore(MemoryStore):
    """Raises what the script says, one entry a commit; a callable is called instead."""

    def __init__(self, script: Sequence[Exception | Callable[[], None] | None] = (), **limits: int) -> None:
        super().__init__(**limits)
        self.script = list(script)
        self.tries = 0

    async def commit(self, epoch: int, writes: Sequence[Write]) -> int:
        self.tries += 1
        step = self.script.pop(0) if self.script else None
        if isinstance(step, StoreUnavailableError) and "landed" in str(step):
            await super().commit(epoch, writes)
        if isinstance(step, Exception):
            raise step
        return await super().commit(epoch, writes)


LOST, LANDED = StoreUnavailableError("no answer"), StoreUnavailableError("landed, but the answer was lost")


async def started(store: MemoryStore, **options: object) -> GroupCommit:
    commits = GroupCommit(store, await store.acquire("a"), interval_s=0.001, **options)  # type: ignore[arg-type]
    commits.start()
    return commits


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.005)


async def test_the_last_values_land_whatever_is_lost() -> None:
    store = ScriptedStore([LOST, LANDED, None, LANDED, LOST])
    commits = await started(store)
    for number in range(350):
        commits.put_together([Write(f"k{number % 130}", b"%d" % number)])
    await commits.flush()
    assert dict((await store.load()).items) == {f"k{number % 130}": b"%d" % number for number in range(350)}
    assert commits.healthy
    await commits.close()


async def test_a_store_without_answers_is_reported_and_writes_wait_up_to_the_bound() -> None:
    store = ScriptedStore([LOST] * 10_000)
    commits = await started(store, max_pending=5)
    for number in range(5):
        commits.put_together([Write(f"k{number}", b"")])
    await until(lambda: not commits.healthy, "the failure is not reported")
    assert commits.full
    assert commits.last_error == "no answer"
    store.script.clear()
    await commits.flush()
    assert commits.healthy
    assert not commits.full
    await commits.close()


async def test_a_full_store_takes_the_waiting_writes_once_it_has_space() -> None:
    store = ScriptedStore(max_bytes=100)
    commits = await started(store)
    await commits.durable(commits.put_together([Write("old", b"x" * 90)]))
    waiting = asyncio.create_task(commits.durable(commits.put_together([Write("new", b"y" * 50)])))
    await until(lambda: "exceed the store's 100" in commits.last_error, "a full store is not reported")
    assert commits.fenced is None
    assert not waiting.done()
    await store.commit(store._epoch, [Write("old", None)])
    async with asyncio.timeout(30):
        await waiting
    assert dict((await store.load()).items) == {"new": b"y" * 50}
    await commits.close()


async def test_fencing_is_passed_on_to_the_leadership_and_to_waiters() -> None:
    store = MemoryStore()
    reasons: list[FencedError] = []
    commits = await started(store, on_fenced=reasons.append)
    await store.resign()
    with pytest.raises(FencedError):
        await commits.durable(commits.put_together([Write("k", b"")]))
    assert len(reasons) == 1
    with pytest.raises(FencedError):
        commits.put_together([Write("k", b"")])
    await commits.close()


def broken() -> bytes:
    raise TypeError("a row cannot be encoded")


POISON = {
    "a rejected batch": (Write("k", b"x" * (MAX_COMMIT_BYTES + 1)), [], "RejectedWriteError"),
    "an unknown error of the store": (Write("k", b""), [ValueError("a bug")], "ValueError: a bug"),
    "a row that cannot be encoded": (LateWrite("k", broken), [], "TypeError: a row cannot be encoded"),
    "a cancellation by a library": (Write("k", b""), [asyncio.CancelledError()], "cancelled"),
}


@pytest.mark.parametrize(("write", "script", "reason"), POISON.values(), ids=POISON.keys())
async def test_what_can_never_land_ends_the_leadership_with_a_reason(
    write: Write | LateWrite, script: list[BaseException], reason: str
) -> None:
    """Repeating it for ever would stop every commit; dropping it would lose an acknowledged change."""

    class Poisoned(MemoryStore):
        async def commit(self, epoch: int, writes: Sequence[Write]) -> int:
            if script:
                raise script[0]
            return await super().commit(epoch, writes)

    store = Poisoned()
    reasons: list[FencedError] = []
    commits = await started(store, on_fenced=reasons.append)
    with pytest.raises(FencedError, match=reason):
        async with asyncio.timeout(30):
            await commits.durable(commits.put_together([write]))
    await until(lambda: bool(reasons), "the leadership does not hear of it")
    assert reason in str(reasons[0])
    await commits.close()


async def test_a_row_that_changes_often_is_encoded_once_a_batch() -> None:
    encodings = 0
    value = 0

    def encode() -> bytes:
        nonlocal encodings
        encodings += 1
        return b"%d" % value

    store = MemoryStore()
    commits = GroupCommit(store, await store.acquire("a"), interval_s=0.001)
    for value in range(1000):  # noqa: B007 - `encode` reads it
        commits.put_together([LateWrite("row", encode)])
    commits.start()
    await commits.flush()
    assert encodings == 1
    assert (await store.load()).items["row"] == b"999"
    await commits.close()


async def test_closing_within_a_bound_does_not_wait_for_a_store_that_is_away() -> None:
    commits = await started(ScriptedStore([LOST] * 10_000))
    commits.put_together([Write("k", b"")])
    async with asyncio.timeout(30):
        await commits.close(0.05)


async def test_a_commit_wakes_those_whose_writes_have_landed_and_no_one_else() -> None:
    """Waiting costs a commit nothing: with 1,000 engines, each report waits for its own."""
    commits = GroupCommit(MemoryStore(), 1, interval_s=0.001)
    landed: list[int] = []

    async def wait(number: int) -> None:
        await commits.durable(number)
        landed.append(number)

    numbers = [commits.put_together([Write(f"k{number}", b"v")]) for number in range(3)]
    waiting = [asyncio.create_task(wait(number)) for number in reversed(numbers)]
    cancelled = asyncio.create_task(wait(numbers[0]))
    await asyncio.sleep(0)
    cancelled.cancel()
    commits._landed = numbers[1]
    commits._wake(numbers[1])
    await until(lambda: len(landed) == 2, "both have landed")
    assert landed == numbers[:2]
    await commits.fence(FencedError("another leads"))
    with pytest.raises(FencedError):
        await waiting[0]
    assert landed == numbers[:2]
    await asyncio.gather(*waiting[1:])
