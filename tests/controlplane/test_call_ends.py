"""Ends of calls that name several engines, and of calls whose exchange is over, as the leader decides them."""

from __future__ import annotations

import pytest
from agentserving.contract import ticket
from agentserving.contract.ids import EngineId, Tenant
from agentserving_controlplane import call_ends
from agentserving_controlplane.calls import Admission
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.engine_sessions import EngineReport, EngineSession
from agentserving_controlplane.engines.directives import CancelCalls
from agentserving_controlplane.engines.health import EngineState
from agentserving_controlplane.engines.outliers import FAILURES
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.table.states import Outcome
from controlplane.leader_builders import ACME, admit, attach, end, leader, report, sent, until
from controlplane.table_builders import key

E1, E2, E3 = EngineId("e1"), EngineId("e2"), EngineId("e3")


async def attach_all(plane: ControlPlane) -> dict[EngineId, EngineSession]:
    return {engine_id: await attach(plane, engine_id) for engine_id in (E1, E2, E3)}


def order(admission: Admission) -> list[EngineId]:
    return [admission.engine_id, *(each.engine_id for each in admission.fallbacks)]


async def test_as_many_fallbacks_are_named_as_the_sender_can_use_and_the_ticket_is_good_on_each() -> None:
    async with leader() as plane:
        await attach_all(plane)
        for asked, named in [(0, 1), (1, 2), (2, 3), (9, 3)]:
            admission = admit(plane, max_fallbacks=asked)
            assert len(set(order(admission))) == named
            assert all(each.address == f"{each.engine_id}:8000" for each in admission.fallbacks)
            for engine_id in order(admission):
                keys = ticket.IssuerKeys([key.public_key() for key in plane.settings.ticket_keys()])
                found = ticket.verify(admission.ticket, keys, engine_id=engine_id, now_unix_s=0)
                assert list(found.ticket.engine_ids) == order(admission)


async def test_a_repeated_admission_names_the_same_engines_wherever_the_call_is_by_now() -> None:
    async with leader() as plane:
        sessions = await attach_all(plane)
        first = admit(plane, "p", max_fallbacks=2, idempotency_key="k", digest="d")
        await report(sessions[order(first)[1]], first, service_us=3, running=True)
        again = admit(plane, "p", max_fallbacks=2, idempotency_key="k", digest="d")
        assert (again.call_id, order(again)) == (first.call_id, order(first))


async def test_calls_in_flight_follow_the_call_to_the_engine_that_runs_it() -> None:
    async with leader() as plane:
        sessions = await attach_all(plane)
        admission = admit(plane, "p", max_fallbacks=2)
        first, second, _ = order(admission)
        await report(sessions[second], admission, service_us=3, running=True)
        assert (plane.engines.get(first).in_flight, plane.engines.get(second).in_flight) == (0, 1)
        await report(sessions[second], admission, service_us=9, outcome=Outcome.COMPLETED)
        assert plane.table.open_calls == plane.engines.get(second).in_flight == 0


@pytest.mark.parametrize("said_by", ["the next engine", "its own report", "the sender"])
async def test_an_engine_whose_calls_others_had_to_take_is_ejected(said_by: str) -> None:
    async with leader() as plane:
        sessions = await attach_all(plane)
        for _ in range(FAILURES):
            admission = admit(plane, max_fallbacks=2, exclude_engine_ids=frozenset({E3}))
            while admission.engine_id != E1:
                end(plane, admission, Outcome.CANCELLED, never_started=True)
                admission = admit(plane, max_fallbacks=2, exclude_engine_ids=frozenset({E3}))
            if said_by == "the next engine":
                await report(sessions[E2], admission, service_us=1, outcome=Outcome.COMPLETED)
            elif said_by == "its own report":
                await report(sessions[E1], admission, outcome=Outcome.FAILED)
                await report(sessions[E2], admission, service_us=1, outcome=Outcome.COMPLETED)
            end(plane, admission, Outcome.COMPLETED, engine_id=E2, tries=2)
        assert plane.engines.get(E1).state is EngineState.FAILING
        assert plane.engines.get(E1).outliers.failures == FAILURES
        assert plane.engines.get(E2).outliers.failures == 0


async def test_a_call_that_failed_everywhere_ends_with_its_exchange() -> None:
    async with leader() as plane:
        sessions = await attach_all(plane)
        admission = admit(plane, "p", max_fallbacks=2)
        first, _, last = order(admission)
        await report(sessions[first], admission, service_us=4, outcome=Outcome.FAILED)
        assert plane.table.open_calls == 1
        end(plane, admission, Outcome.FAILED, tries=3, never_started=True)
        assert (plane.table.open_calls, plane.table.totals.outcomes) == (0, {Outcome.FAILED: 1})
        assert plane.engines.get(last).outliers.failures == 1


async def test_a_call_of_a_sender_that_died_between_two_tries_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_ends, "NEXT_TRY_S", 0.05)
    async with leader() as plane:
        sessions = await attach_all(plane)
        admission = admit(plane, "p", max_fallbacks=2)
        await report(sessions[admission.engine_id], admission, service_us=4, outcome=Outcome.FAILED)
        await until(lambda: not plane.table.open_calls)
        assert plane.table.rows[key("p", "acme")].total_service_us == 4
        assert plane.table.totals.outcomes == {Outcome.FAILED: 1}


async def test_a_restart_between_two_tries_neither_ends_nor_forgets_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    async with leader(store) as plane:
        sessions = await attach_all(plane)
        retried, given_up = admit(plane, "p", max_fallbacks=2), admit(plane, "p", max_fallbacks=2)
        for admission in (retried, given_up):
            await report(sessions[admission.engine_id], admission, service_us=4, outcome=Outcome.FAILED)
        await plane.commits.flush()
    monkeypatch.setattr(call_ends, "NEXT_TRY_S", 0.2)
    async with leader(store) as plane:
        sessions = await attach_all(plane)
        await report(sessions[order(retried)[1]], retried, service_us=7, outcome=Outcome.COMPLETED)
        await until(lambda: not plane.table.open_calls)
        assert plane.table.totals.outcomes == {Outcome.COMPLETED: 1, Outcome.FAILED: 1}
        assert plane.table.rows[key("p", "acme")].total_service_us == 11


async def test_an_engine_that_dies_leaves_its_call_to_the_next() -> None:
    async with leader() as plane:
        sessions = await attach_all(plane)
        admission = admit(plane, "p", max_fallbacks=2)
        first, second, _ = order(admission)
        await report(sessions[first], admission, service_us=4, running=True)
        await sessions[first].report(EngineReport(boot_id="b", engine_down=True))
        assert (plane.table.open_calls, plane.table.index.running_calls) == (1, 0)
        await report(sessions[second], admission, service_us=6, outcome=Outcome.COMPLETED)
        assert (plane.table.open_calls, plane.table.rows[key("p", "acme")].total_service_us) == (0, 6)


async def test_a_call_is_cancelled_on_every_engine_that_may_run_it() -> None:
    async with leader() as plane:
        sessions = await attach_all(plane)
        by_client, by_owner = admit(plane, max_fallbacks=2), admit(plane, "p", max_fallbacks=2)
        end(plane, by_client, Outcome.CANCELLED)
        _, count = await plane.programs.cancel(key("p", ACME))
        assert count == 1
        for session in sessions.values():
            assert sent(session, CancelCalls) == [CancelCalls((each.call_id,)) for each in (by_client, by_owner)]


async def test_an_answer_of_a_later_engine_outweighs_a_failure_that_is_reported_after_the_exchange() -> None:
    async with leader() as plane:
        sessions = await attach_all(plane)
        admission = admit(plane, "p", max_fallbacks=2)
        first, second, _ = order(admission)
        end(plane, admission, Outcome.COMPLETED, engine_id=second, tries=2)
        await report(sessions[first], admission, service_us=50, outcome=Outcome.FAILED)
        assert plane.table.open_calls == 1
        await report(sessions[second], admission, service_us=6, outcome=Outcome.COMPLETED)
        assert (plane.table.totals.outcomes, plane.table.rows[key("p", "acme")].total_service_us) == (
            {Outcome.COMPLETED: 1}, 6,
        )  # fmt: skip


async def test_a_call_that_may_be_on_an_engine_ends_only_if_none_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_ends, "EXCHANGE_OVER_S", 0.05)
    async with leader() as plane:
        sessions = await attach_all(plane)
        unseen, early, late = (admit(plane, name) for name in ("unseen", "early", "late"))
        await report(sessions[early.engine_id], early, service_us=3, running=True)
        for each in (unseen, early, late):
            end(plane, each, Outcome.CANCELLED, if_unseen=True)
        await report(sessions[late.engine_id], late, service_us=3, running=True)
        await until(lambda: not plane.table.rows[key("unseen", ACME)].calls)
        assert not any(sent(session, CancelCalls) for session in sessions.values())
        for name, admission in (("early", early), ("late", late)):
            assert plane.table.rows[key(name, ACME)].calls
            await report(sessions[admission.engine_id], admission, service_us=9, outcome=Outcome.COMPLETED)
            assert not plane.table.rows[key(name, ACME)].calls


async def test_answered_calls_without_a_report_end_and_the_others_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_ends, "EXCHANGE_OVER_S", 0.05)
    async with leader() as plane:
        sessions = await attach_all(plane)
        unseen, running, of_another = (admit(plane, name) for name in ("unseen", "running", "other"))
        await report(sessions[running.engine_id], running, service_us=3, running=True)
        plane.ends.passed_on(ACME, [unseen.call_id, running.call_id, "no.such.call", "nonsense"])
        plane.ends.passed_on(Tenant("umbrella"), [of_another.call_id])
        await until(lambda: not plane.table.rows[key("unseen", ACME)].calls)
        assert plane.table.rows[key("running", ACME)].calls
        assert not plane.table.rows[key("other", ACME)].calls[of_another.call_id].exchange
        await report(sessions[running.engine_id], running, service_us=9, outcome=Outcome.COMPLETED)
        assert not plane.table.rows[key("running", ACME)].calls
