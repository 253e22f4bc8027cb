"""Programs through tasks, copied contexts and OS threads, as frameworks use them."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import agentserving
import pytest
from agentserving.programs import context
from proto.client.carried import Calls


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTSERVING_CONTROL_PLANE", raising=False)


class ThisContext:
    """Runs where it is called."""

    def run(self, function: Callable[[str], None], name: str) -> None:
        """As contextvars.Context does in a copy."""
        function(name)


async def gathered(calls: Calls, *names: str) -> None:
    """In parallel: none is answered before all are in flight."""
    barrier = asyncio.Barrier(len(names))

    async def one(name: str) -> None:
        call = calls.begin(name)
        await barrier.wait()
        calls.answer(name, call)

    await asyncio.gather(*(one(name) for name in names))


async def test_map_reduce_is_found_in_a_gather() -> None:
    calls = Calls()
    async with agentserving.program("map-reduce"):
        calls.make("plan")
        await gathered(calls, "map 1", "map 2", "map 3")
        calls.make("reduce")
        calls.make("polish")
    maps = {"map 1", "map 2", "map 3"}
    assert calls.parents == {"plan": set(), "reduce": maps, "polish": {"reduce"}} | {name: {"plan"} for name in maps}
    assert len({calls.threads[name] for name in maps}) == 3
    assert {calls.threads[name] for name in ("plan", "reduce", "polish")} == {"main"}


@pytest.mark.parametrize("copied", [False, True])
async def test_a_task_left_running_is_joined_by_the_call_after_its_end(copied: bool) -> None:
    calls, go = Calls(), asyncio.Event()

    async def background() -> None:
        calls.make("search")
        await go.wait()
        calls.make("summarise")

    async with agentserving.program():
        calls.make("plan")
        task = asyncio.create_task(background())
        while "search" not in calls.parents:
            await asyncio.sleep(0)
        (contextvars.copy_context() if copied else ThisContext()).run(calls.make, "draft")
        go.set()
        await task
        calls.make("merge")
    assert calls.parents["search"] == {"plan"}
    assert calls.parents["draft"] == {"plan"}
    assert calls.parents["summarise"] == {"search"}
    assert calls.parents["merge"] == {"draft", "summarise"}


async def test_a_task_that_starts_late_still_comes_after_what_it_was_forked_at() -> None:
    calls, go = Calls(), asyncio.Event()

    async def late() -> None:
        await go.wait()
        calls.make("late")

    async with agentserving.program():
        calls.make("first")
        task = asyncio.create_task(late())
        await asyncio.sleep(0)
        calls.make("second")
        go.set()
        await task
    assert calls.parents["late"] == {"first"}


async def test_calls_in_worker_threads_follow_each_other() -> None:
    calls = Calls()
    async with agentserving.program():
        await asyncio.to_thread(calls.make, "one")
        await asyncio.to_thread(calls.make, "two")
        calls.make("three")
    assert calls.parents == {"one": set(), "two": {"one"}, "three": {"two"}}


async def test_calls_in_parallel_worker_threads_are_parallel() -> None:
    calls, barrier = Calls(), threading.Barrier(2)

    def one(name: str) -> None:
        call = calls.begin(name)
        barrier.wait(10)
        calls.answer(name, call)

    async with agentserving.program():
        calls.make("plan")
        await asyncio.gather(asyncio.to_thread(one, "left"), asyncio.to_thread(one, "right"))
        calls.make("merge")
    assert calls.parents["left"] == calls.parents["right"] == {"plan"}
    assert calls.parents["merge"] == {"left", "right"}


async def test_steps_that_run_in_tasks_of_their_own_follow_each_other() -> None:
    calls = Calls()

    async def step(name: str) -> None:
        calls.make(name)

    async with agentserving.program():
        for name in ("one", "two"):
            await asyncio.create_task(step(name))
        await gathered(calls, "left", "right")
        await asyncio.create_task(step("last"))
    assert calls.parents == {
        "one": set(), "two": {"one"}, "left": {"two"}, "right": {"two"}, "last": {"left", "right"}
    }  # fmt: skip


def test_steps_in_copied_contexts_follow_each_other_and_forks_come_after_them() -> None:
    calls, barrier = Calls(), threading.Barrier(2)

    def one(name: str) -> None:
        call = calls.begin(name)
        barrier.wait(10)
        calls.answer(name, call)

    with agentserving.program(), ThreadPoolExecutor(2) as pool:
        contextvars.copy_context().run(calls.make, "plan")
        contextvars.copy_context().run(calls.make, "plan more")
        for job in [pool.submit(contextvars.copy_context().run, one, name) for name in ("left", "right")]:
            job.result(10)
        contextvars.copy_context().run(calls.make, "merge")
    assert calls.parents == {
        "plan": set(), "plan more": {"plan"}, "left": {"plan more"}, "right": {"plan more"}, "merge": {"left", "right"}
    }  # fmt: skip


async def test_a_call_goes_on_in_its_task_whatever_context_it_is_made_in() -> None:
    calls = Calls()

    async def agent(first: str, second: str) -> None:
        contextvars.copy_context().run(calls.make, first)
        await asyncio.sleep(0)
        contextvars.copy_context().run(calls.make, second)

    async with agentserving.program():
        await asyncio.gather(agent("a1", "a2"), agent("b1", "b2"))
    assert calls.parents == {"a1": set(), "b1": set(), "a2": {"a1"}, "b2": {"b1"}}
    assert calls.threads["a1"] == calls.threads["a2"] != calls.threads["b1"]


async def test_a_program_inside_is_a_child_and_the_outer_thread_goes_on_after_it() -> None:
    calls = Calls()
    async with agentserving.program("outer") as outer:
        calls.make("before")
        async with agentserving.program("inner") as inner:
            assert inner.parent_program_id == outer.program_id
            assert agentserving.current_program() is inner
            calls.make("inside")
        calls.make("after")
        async with agentserving.program("root of its own", parent="") as other:
            assert other.parent_program_id == ""
    assert agentserving.current_program() is None
    assert context.begin_call() is None
    assert calls.programs == {"before": outer.program_id, "inside": inner.program_id, "after": outer.program_id}
    assert calls.parents == {"before": set(), "inside": set(), "after": {"before"}}


def test_programs_nest_no_deeper_than_the_control_plane_takes() -> None:
    opened: list[agentserving.ProgramSession] = []
    for _ in range(30):
        opened.append(agentserving.program())
        opened[-1].__enter__()
    above = {session.program_id: session.parent_program_id for session in opened}
    depth, step = 0, opened[-1].program_id
    while above[step]:
        depth, step = depth + 1, above[step]
    assert depth == 15
    for session in reversed(opened):
        session.__exit__(None, None, None)


def test_named_threads_fork_here_run_anywhere_and_join() -> None:
    calls = Calls()

    def work(thread: agentserving.ProgramThread, name: str) -> None:
        with thread:
            calls.make(name)
            calls.make(name + " again")

    with agentserving.program() as p:
        calls.make("plan")
        left, right = p.fork("left"), p.fork("right")
        workers = [threading.Thread(target=work, args=(t, t.thread_id)) for t in (left, right)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(10)
        p.join(left, right)
        calls.make("merge")
        with p.thread("critic"):
            calls.make("criticise")
        calls.make("revise")
    assert calls.parents == {
        "plan": set(), "left": {"plan"}, "right": {"plan"}, "left again": {"left"}, "right again": {"right"},
        "merge": {"left again", "right again"}, "criticise": {"merge"}, "revise": {"criticise"},
    }  # fmt: skip
    assert [calls.threads[n] for n in ("left", "right again", "criticise", "revise")] == [
        "left", "right", "critic", "main"
    ]  # fmt: skip


def test_an_os_thread_that_nothing_was_copied_into_is_outside_unless_it_takes_a_thread() -> None:
    found: list[object] = []
    calls = Calls()

    def bare(p: agentserving.ProgramSession) -> None:
        found.append(context.begin_call())
        with p.thread("helper"):
            calls.make("helped")
        found.append(context.begin_call())

    with agentserving.program() as p:
        calls.make("plan")
        worker = threading.Thread(target=bare, args=(p,), name="bare")
        contextvars.Context().run(worker.start)
        worker.join(10)
        calls.make("go on")
    assert found == [None, None]
    assert calls.parents == {"plan": set(), "helped": {"plan"}, "go on": {"helped"}}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"program_id": "no spaces"}, "program_id"),
        ({"program_id": "x" * 129}, "program_id"),
        ({"program_id": "p", "parent": "p"}, "own parent"),
        ({"parent": "a\nb"}, "parent"),
    ],
)
def test_an_id_that_the_gateway_would_not_take_is_refused_here(arguments: dict[str, str], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        agentserving.program("x", **arguments)  # type: ignore[arg-type]


def test_any_text_makes_a_name_and_a_thread() -> None:
    with agentserving.program("naïve ✓ " * 40) as p, p.thread("line\r\nbreak"):
        sent = p.headers()
    assert all(value.isascii() and value.isprintable() for value in sent.values())
    assert sent["x-agentserving-thread-id"].startswith("h-")
    assert len(p.name.encode()) <= 128


def test_a_program_is_opened_once() -> None:
    with agentserving.program() as p:
        pass
    with pytest.raises(RuntimeError, match="opened before"), p:
        pass
