"""Requests become calls: tickets, siblings, beams, late requests, replays, tenants."""

from __future__ import annotations

import pytest
from agentserving.contract.ids import CallId, ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import Accounting
from agentserving_engine.calls import CallBook, Outbox, TicketCheck, Unticketed
from agentserving_engine.calls.book import BEAM_GAP_US, base_id, unmanaged_account
from agentserving_engine.calls.tickets import joined
from agentserving_engine.policy import CallFacts, CallStats
from engine.calls.tickets import KEYS, gateway_ticket, ticket
from hypothesis import given
from hypothesis import strategies as st

STATS = CallStats(wait_us=3, running=True)
P = ProgramKey(Tenant("default"), ProgramId("p"))
UNIX_S = 10.0


def book(outbox: Outbox | None = None, unticketed: Unticketed = Unticketed.LAST) -> CallBook:
    return CallBook(TicketCheck(engine_id="e", keys=lambda: KEYS, unticketed=unticketed), outbox)


def arrive(
    calls: CallBook, request: str, session: str | None, now: int = 0, accounting: Accounting = Accounting.SUM
) -> CallFacts:
    return calls.arrive(request, session, now, UNIX_S, accounting)


def end(calls: CallBook, request: str, now: int = 1, outcome: str = "completed"):
    return calls.end(request, STATS, outcome, now, Accounting.SUM)


def beam(call: str, step: int, index: int) -> str:
    """A request of a beam search, as vllm/entrypoints/generate/beam_search/online.py names it."""
    return f"chatcmpl-{call}-{step:032x}-beam-{index}-{index:08x}"


def test_a_ticket_names_program_account_and_age() -> None:
    facts = arrive(book(), "chatcmpl-p.1.0-0123abcd", ticket(class_name="triage"))
    assert (facts.program, facts.attained_service_us, facts.program_wait_us) == (P, 100, 7)
    assert (facts.program_arrival_us, facts.managed, facts.class_name) == (42, True, "triage")


def test_requests_without_a_good_ticket_share_one_account() -> None:
    calls = book()
    for index, session in enumerate((None, "", "forged", ticket(expires=5))):
        facts = arrive(calls, f"r{index}", session)
        assert (facts.managed, facts.program) == (False, unmanaged_account(Tenant("")))
        assert facts.attained_service_us == index * 10
        calls.end(f"r{index}", CallStats(service_us=10, wait_us=99), "completed", 1, Accounting.SUM)
        assert arrive(calls, "probe", None).program_wait_us == 0
    assert calls.unmanaged_calls == 8
    assert calls.take_refused() == []
    assert calls.rejections.by_reason == {"malformed": 1, "expired": 1}


def test_an_expired_ticket_is_logged_with_its_age_once_a_minute() -> None:
    calls = book()
    for second in range(150):
        calls.arrive(f"r{second}", ticket(expires=1000), second * 1_000_000, 1900.0 + second, Accounting.SUM)
    lines = calls.rejections.take_lines()
    assert len(lines) == 3
    assert "expired for 900 s" in lines[0]
    assert "check the clocks" in lines[0]
    assert "(60 since" in lines[1]
    assert calls.rejections.total == 150
    assert calls.rejections.take_lines() == []


def test_where_tickets_are_required_a_request_without_one_is_refused() -> None:
    calls = book(unticketed=Unticketed.REFUSE)
    used = ticket()
    for name, session in (("none", None), ("forged", "x"), ("good", joined(used, "a")), ("again", joined(used, "b"))):
        arrive(calls, name, session)
    assert calls.take_refused() == ["none", "forged", "again"]
    assert calls.take_refused() == []


def test_a_gateway_vouches_for_a_tenant_whose_calls_share_an_account() -> None:
    calls = book(unticketed=Unticketed.REFUSE)
    for name in ("one", "two"):
        facts = arrive(calls, name, gateway_ticket(name, tenant="acme"))
        assert (facts.managed, facts.program) == (False, unmanaged_account(Tenant("acme")))
    assert calls.take_refused() == []
    arrive(calls, "three", gateway_ticket("one", tenant="acme"))
    assert calls.take_refused() == ["three"]


@given(st.lists(st.lists(st.integers(0, 3), unique=True, max_size=4), max_size=12), st.booleans())
def test_each_sequence_of_a_call_is_charged_and_none_twice(steps: list[list[int]], named: bool) -> None:
    """n = 4 for one prompt: whatever of it runs, the call pays as four calls of one sequence would."""
    calls = book()
    session = joined(ticket(), "one") if named else ticket()
    members = [f"{index}_chatcmpl-p.1.0-0123abcd" for index in range(4)]
    for member in members:
        assert arrive(calls, member, session).managed
    for step in steps:
        for index in step:
            calls.charge(members[index], 10)
        running = {members[index] for index in step}
        assert [set(group) for group in calls.together(running)] == ([running] if len(running) > 1 else [])
    records = [end(calls, member) for member in members]
    assert records[:3] == [None] * 3
    assert records[3] is not None
    assert records[3].service_us == 10 * sum(map(len, steps))
    assert calls.together(members) == []


def test_a_ticket_is_good_for_one_http_request_whatever_request_ids_a_client_chooses() -> None:
    calls = book()
    text = ticket()
    assert arrive(calls, "0_chatcmpl-p.1.0-0123abcd", joined(text, "first")).managed
    assert arrive(calls, "1_chatcmpl-p.1.0-0123abcd", joined(text, "first")).managed
    assert not arrive(calls, "chatcmpl-p.1.0-89abcdef", joined(text, "second")).managed
    assert calls.rejections.by_reason == {"replayed": 1}


def test_children_of_one_request_are_one_call_charged_for_each() -> None:
    calls = book()
    members = ["0_chatcmpl-p.1.0-0123abcd", "1_chatcmpl-p.1.0-0123abcd"]
    for member in members:
        assert arrive(calls, member, ticket()).managed
    for _ in range(2):
        for member in members:
            calls.charge(member, 10)
    assert end(calls, members[0]) is None
    record = end(calls, members[1])
    assert record is not None
    assert (record.service_us, record.wait_us) == (40, 3)


def test_prompts_of_one_completion_are_one_call() -> None:
    calls = book()
    assert arrive(calls, "cmpl-p.1.0-0-0123abcd", ticket()).managed
    assert arrive(calls, "cmpl-p.1.0-1-89abcdef", ticket()).managed
    assert len(calls.requests_of(CallId("p.1.0"))) == 2


@pytest.mark.parametrize(
    "request_id",
    [
        "chatcmpl-p.1.0-0123abcd",
        "3_chatcmpl-p.1.0-0123abcd",
        "chatcmpl-p.1.0_2-0123abcd",
        beam("p.1.0", 1, 0),
        beam("p.1.0", 77, 5),
    ],
)
def test_all_requests_of_one_http_request_have_one_base_id(request_id: str) -> None:
    assert base_id(request_id) == "chatcmpl-p.1.0"


def test_a_replayed_ticket_buys_nothing() -> None:
    calls = book()
    arrive(calls, "chatcmpl-p.1.0-0123abcd", ticket())
    assert not arrive(calls, "chatcmpl-other-0123abcd", ticket()).managed
    end(calls, "chatcmpl-p.1.0-0123abcd")
    assert not arrive(calls, "chatcmpl-other-89abcdef", ticket(), now=5_000_000).managed
    assert calls.rejections.by_reason == {"replayed": 2}


def test_the_next_call_starts_where_the_last_one_left_its_program() -> None:
    calls = book()
    arrive(calls, "chatcmpl-p.1.0-0123abcd", ticket())
    calls.charge("chatcmpl-p.1.0-0123abcd", 50)
    end(calls, "chatcmpl-p.1.0-0123abcd")
    assert arrive(calls, "chatcmpl-p.1.1-0123abcd", ticket("p.1.1")).attained_service_us == 150


def test_a_terminal_record_is_kept_until_it_is_acknowledged() -> None:
    calls = book()
    arrive(calls, "chatcmpl-p.1.0-0123abcd", ticket())
    end(calls, "chatcmpl-p.1.0-0123abcd")
    assert [(record.call_id, record.attempt) for record in calls.outbox.unacked()] == [("p.1.0", 1)]
    calls.outbox.acknowledge([("p.1.0", 1)])
    assert calls.outbox.unacked() == []


def test_programs_of_two_tenants_with_one_id_share_neither_account_nor_call() -> None:
    calls = book()
    arrive(calls, "r1", ticket("p.1.0", 0, tenant="acme"))
    calls.charge("r1", 100_000_000)
    end(calls, "r1")
    facts = arrive(calls, "r2", ticket("p.1.1", 0, tenant="globex"))
    assert facts.program == ProgramKey(Tenant("globex"), ProgramId("p"))
    assert facts.attained_service_us == 0


# -- requests that the front end makes in a loop -----------------------------------------------------------------


def search(calls: CallBook, tokens: int, beams: int, *, gap_us: int, service_us: int = 10) -> int:
    """A beam search; returns the time at its end."""
    now = 0
    for step in range(tokens):
        members = [beam("p.1.0", step, index) for index in range(beams if step else 1)]
        for member in members:
            facts = arrive(calls, member, ticket(), now)
            assert facts.managed, "unmanaged"
            assert facts.program == P
        now += service_us
        for member in members:
            calls.charge(member, service_us)
        for member in members:
            assert end(calls, member, now) is None
        now += gap_us
    return now


def test_a_beam_search_is_one_call_with_one_record() -> None:
    calls = book()
    now = search(calls, tokens=12, beams=3, gap_us=5_000)
    assert calls.unmanaged_calls == calls.rejections.total == 0
    assert calls.outbox.unacked() == []
    (record,) = calls.outbox.take_due(now + BEAM_GAP_US)
    assert (record.outcome, record.service_us, record.wait_us) == ("completed", 340, 36)
    assert calls.accounts.of(P).attained_us == 440
    calls.sweep(now + 2 * BEAM_GAP_US)
    assert calls.open_calls == len(calls._between) == 0


def test_each_token_of_a_beam_search_arrives_with_what_its_call_has_received() -> None:
    """Otherwise every token would enter at the level of a call that has received nothing."""
    for accounting, expected in ((Accounting.NONE, 70), (Accounting.SUM, 170), (Accounting.CRITICAL_PATH, 170)):
        calls = book()
        arrive(calls, beam("p.1.0", 0, 0), ticket(), 0, accounting)
        calls.charge(beam("p.1.0", 0, 0), 70)
        calls.end(beam("p.1.0", 0, 0), STATS, "completed", 70, accounting)
        facts = arrive(calls, beam("p.1.0", 1, 0), ticket(), 80, accounting)
        assert facts.attained_service_us == expected, accounting


def test_a_request_after_the_report_is_charged_to_its_program_and_not_reported_again() -> None:
    calls = book()
    arrive(calls, "resp_1_0-0123abcd", ticket())
    calls.charge("resp_1_0-0123abcd", 50)
    assert end(calls, "resp_1_0-0123abcd") is not None
    facts = arrive(calls, "resp_1_1-89abcdef", ticket(), now=60_000_000)
    assert facts.managed
    assert facts.attained_service_us == 150
    calls.charge("resp_1_1-89abcdef", 30)
    assert calls.requests_of(CallId("p.1.0")) == ["resp_1_1-89abcdef"]
    assert calls.rotate(10) == []
    assert end(calls, "resp_1_1-89abcdef") is None
    assert calls.accounts.of(P).attained_us == 180
    assert len(calls.outbox.unacked()) == 1
    assert calls.unmanaged_calls == calls.open_calls == 0


def test_a_beam_that_comes_after_its_call_was_reported_is_charged_to_its_program() -> None:
    calls = book()
    arrive(calls, beam("p.1.0", 0, 0), ticket())
    calls.charge(beam("p.1.0", 0, 0), 50)
    end(calls, beam("p.1.0", 0, 0), 10)
    (sent,) = calls.outbox.take_due(10 + BEAM_GAP_US)
    assert arrive(calls, beam("p.1.0", 1, 0), ticket(), 20 + BEAM_GAP_US).attained_service_us == 150
    calls.charge(beam("p.1.0", 1, 0), 30)
    end(calls, beam("p.1.0", 1, 0), 30 + BEAM_GAP_US)
    assert calls.accounts.of(P).attained_us == 180
    assert sent.service_us == 50, "a record that was sent must not change"
    assert len(calls.outbox.unacked()) == 1


# -- memory ------------------------------------------------------------------------------------------------------


def test_every_open_call_gets_its_turn_however_many_end_meanwhile() -> None:
    calls = book()
    arrive(calls, "live", ticket("live.1.0"))
    seen = 0
    for number in range(2_000):
        arrive(calls, f"r{number}", ticket(f"p.1.{number}"))
        arrive(calls, f"s{number}", ticket(f"q.1.{number}"))
        seen += any(call.record.call_id == "live.1.0" for call in calls.rotate(2))
        for name in (f"r{number}", f"s{number}"):
            record = end(calls, name)
            assert record is not None
            calls.outbox.acknowledge([(record.call_id, record.attempt)])
    assert seen > 500
    assert calls.open_calls == 1


def test_nothing_grows_without_a_sidecar() -> None:
    calls = book(Outbox(limit=0))
    for number in range(3_000):
        arrive(calls, f"r{number}", ticket(f"p.1.{number}"))
        end(calls, f"r{number}")
    assert calls.open_calls == len(calls.outbox) == 0
    # There is nothing to delay either.
    arrive(calls, beam("q.1.0", 0, 0), ticket("q.1.0"))
    assert end(calls, beam("q.1.0", 0, 0)) is not None
    assert not calls.outbox.delays


def test_records_for_a_sidecar_that_is_away_are_bounded() -> None:
    outbox = Outbox(limit=100)
    calls = book(outbox)
    for number in range(300):
        arrive(calls, f"r{number}", ticket(f"p.1.{number}"))
        end(calls, f"r{number}")
    assert len(outbox) == 100
    assert outbox.dropped == 200
    assert outbox.unacked()[-1].call_id == "p.1.299"
