"""Requests become calls: tickets, siblings, replays."""

from __future__ import annotations

from agentserving.contract.policy import Accounting
from agentserving.contract.ticket import Ticket, sign
from agentserving_engine.call_book import CallBook
from agentserving_engine.policy import CallStats

KEY = b"0123456789abcdef"
STATS = CallStats(0, 0, 3, 0, 0, 0, True)


def ticket(call: str = "p.1.0", account: int = 100, expires: int = 1000) -> str:
    return sign(Ticket(call, 1, "p", "p", "default", "", "e", account, 7, 1, 1, expires, 42), KEY)


def arrive(book: CallBook, request: str, session: str | None, now: int = 0):
    return book.arrive(request, session, now, 10.0, Accounting.SUM)


def test_a_ticket_tells_program_account_and_age() -> None:
    book = CallBook("e", lambda: (KEY,))
    facts = arrive(book, "chatcmpl-p.1.0-0123abcd", ticket())
    assert (facts.program, facts.attained_service_us, facts.program_wait_us) == ("p", 100, 7)
    assert (facts.program_arrival_us, facts.managed) == (42, True)


def test_a_request_without_a_good_ticket_is_a_program_of_its_own() -> None:
    book = CallBook("e", lambda: (KEY,))
    for index, session in enumerate((None, "", "forged", ticket(expires=5))):
        facts = arrive(book, f"r{index}", session)
        assert not facts.managed
        assert facts.program.endswith(f"r{index}")
    assert book.totals.unmanaged_calls == 4
    assert book.totals.rejected_tickets == 2


def test_children_of_one_request_are_one_call_charged_once_a_step() -> None:
    book = CallBook("e", lambda: (KEY,))
    members = ["0_chatcmpl-p.1.0-0123abcd", "1_chatcmpl-p.1.0-0123abcd"]
    for member in members:
        assert arrive(book, member, ticket()).managed
    for step in (1, 2):
        for member in members:
            book.charge(member, step, 10)
    assert book.end(members[0], STATS, "completed", 1, Accounting.SUM) is None
    record = book.end(members[1], STATS, "completed", 1, Accounting.SUM)
    assert record is not None
    assert (record.service_us, record.wait_us) == (20, 3)


def test_prompts_of_one_completion_are_one_call() -> None:
    book = CallBook("e", lambda: (KEY,))
    assert arrive(book, "cmpl-p.1.0-0-0123abcd", ticket()).managed
    assert arrive(book, "cmpl-p.1.0-1-89abcdef", ticket()).managed
    assert len(book.requests_of("p.1.0")) == 2


def test_a_replayed_ticket_buys_nothing() -> None:
    book = CallBook("e", lambda: (KEY,))
    arrive(book, "chatcmpl-p.1.0-0123abcd", ticket())
    assert not arrive(book, "chatcmpl-other-0123abcd", ticket()).managed
    book.end("chatcmpl-p.1.0-0123abcd", STATS, "completed", 1, Accounting.SUM)
    assert not arrive(book, "chatcmpl-p.1.0-89abcdef", ticket(), now=5_000_000).managed
    assert book.totals.rejected_tickets == 2


def test_the_next_call_stands_where_the_last_one_left_its_program() -> None:
    book = CallBook("e", lambda: (KEY,))
    arrive(book, "chatcmpl-p.1.0-0123abcd", ticket())
    book.charge("chatcmpl-p.1.0-0123abcd", 1, 50)
    book.end("chatcmpl-p.1.0-0123abcd", STATS, "completed", 1, Accounting.SUM)
    assert arrive(book, "chatcmpl-p.1.1-0123abcd", ticket("p.1.1")).attained_service_us == 150


def test_a_terminal_record_is_kept_until_it_is_acknowledged() -> None:
    book = CallBook("e", lambda: (KEY,))
    arrive(book, "chatcmpl-p.1.0-0123abcd", ticket())
    book.end("chatcmpl-p.1.0-0123abcd", STATS, "completed", 1, Accounting.SUM)
    assert list(book.unacked) == [("p.1.0", 1)]
    book.acknowledge([("p.1.0", 1)])
    assert not book.unacked
