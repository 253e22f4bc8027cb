"""Programs on the ranks of a data-parallel engine."""

from __future__ import annotations

import json
from collections import Counter

from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving_engine.calls import TicketCheck
from agentserving_engine.http.dialects import Dialect
from agentserving_engine.http.entrance import Entrance
from agentserving_engine.http.middleware import Message, serve
from agentserving_engine.http.ranks import IDLE_US, MAX_PROGRAMS, Ranks
from engine.calls.tickets import KEYS, ticket
from hypothesis import given
from hypothesis import strategies as st


def key(name: object) -> ProgramKey:
    return ProgramKey(Tenant("t"), ProgramId(str(name)))


def run(ranks: Ranks, name: object, now_us: int = 0) -> int:
    rank = ranks.begin(key(name), now_us)
    ranks.end(key(name), rank, now_us)
    return rank


def test_a_program_stays_on_its_rank_while_others_come_and_go() -> None:
    ranks = Ranks(3)
    first = run(ranks, "a")
    for number in range(50):
        run(ranks, number)
    assert [run(ranks, "a", second * 1_000_000) for second in range(50)] == [first] * 50


def test_programs_between_two_calls_count_when_a_new_one_is_placed() -> None:
    ranks = Ranks(4)
    assert set(Counter(run(ranks, number) for number in range(40)).values()) == {10}


def test_a_program_of_many_calls_weighs_more_than_one_that_waits_for_tools() -> None:
    ranks = Ranks(2)
    busy = [ranks.begin(key("busy"), 0) for _ in range(5)]
    others = {run(ranks, number) for number in range(5)}
    assert set(busy) == {0}
    assert others == {1}
    # All of it is over: what is left are programs that may come back.
    for rank in busy:
        ranks.end(key("busy"), rank, 0)
    assert [run(ranks, f"more{number}") for number in range(3)] == [0, 0, 0]


def test_a_program_that_was_away_for_long_is_placed_again() -> None:
    ranks = Ranks(2)
    assert (run(ranks, "a"), run(ranks, "b")) == (0, 1)
    running = ranks.begin(key("c"), 1)
    assert running == 0
    assert run(ranks, "b", IDLE_US) == 1
    # "c" still runs, so it stays.
    assert ranks.begin(key("c"), 2 * IDLE_US) == running
    assert run(ranks, "b", 2 * IDLE_US) == 1


def test_the_longest_idle_program_gives_way_when_too_many_are_remembered() -> None:
    ranks = Ranks(2)
    for number in range(MAX_PROGRAMS + 100):
        run(ranks, number)
    assert len(ranks._programs) <= MAX_PROGRAMS + 1


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, IDLE_US)), max_size=60),
    st.integers(2, 4),
)
def test_what_has_begun_and_ended_leaves_no_load(steps: list[tuple[int, bool, int]], count: int) -> None:
    ranks, now_us = Ranks(count), 0
    open_calls: list[tuple[ProgramKey | None, int]] = []
    for name, begins, after_us in steps:
        now_us += after_us
        program = key(name) if name else None
        if begins:
            rank = ranks.begin(program, now_us)
            assert 0 <= rank < count
            # All calls of a program that run are on one rank.
            assert {r for p, r in open_calls if p == program and program is not None} <= {rank}
            open_calls.append((program, rank))
        elif open_calls:
            ranks.end(*open_calls.pop(0), now_us)
    for each in open_calls:
        ranks.end(*each, now_us)
    ranks._forget_idle(now_us + IDLE_US)
    run(ranks, "last", now_us + IDLE_US)
    assert ranks._load == [1, *[0] * (count - 1)]


async def headers_of(session: str | None, ranks: Ranks | None) -> list[tuple[bytes, bytes]]:
    """What vLLM sees of a request in which the client names a rank itself."""
    seen: Message = {}

    async def application(scope: Message, receive: object, send: object) -> None:
        seen["headers"] = scope["headers"]
        await receive()  # type: ignore[operator]
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b"{}", "more_body": False})  # type: ignore[operator]

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps({"messages": []}).encode(), "more_body": False}

    async def send(message: Message) -> None:
        assert message

    headers = [(b"X-Data-Parallel-Rank", b"7"), *([(b"x-session-id", session.encode())] if session else [])]
    scope: Message = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    door = Entrance(lambda: TicketCheck(engine_id="e", keys=lambda: KEYS), separate_caches=True)
    await serve(application, scope, receive, send, dialect=Dialect.OPENAI, keep_alive_s=0, entrance=door, ranks=ranks)
    return [(name, value) for name, value in seen["headers"] if name.lower() == b"x-data-parallel-rank"]


async def test_the_middleware_names_the_rank_of_the_ticket_s_root_program() -> None:
    ranks = Ranks(2)
    one, other = ticket(expires=1 << 40, call_id="p.1.0"), ticket(expires=1 << 40, call_id="p.1.1")
    busy = ranks.begin(None, 0)
    assert busy == 0
    for session in (one, other):
        assert await headers_of(session, ranks) == [(b"x-data-parallel-rank", b"1")]
    # A call without a program goes where there is least to do, and is not counted when it is over.
    ranks.end(None, busy, 0)
    for _ in range(3):
        assert await headers_of(None, ranks) == [(b"x-data-parallel-rank", b"0")]


async def test_an_engine_with_one_scheduler_gets_requests_as_they_are() -> None:
    assert await headers_of(None, None) == [(b"X-Data-Parallel-Rank", b"7")]
