"""The leader's operations in values: refusals, ends, accounts on other engines, tenants, many calls."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agentserving.contract.ids import EngineId, ProgramId
from agentserving_controlplane import call_ends
from agentserving_controlplane.control_plane import ITEMS_PER_SLICE, ControlPlane
from agentserving_controlplane.engines.directives import Accounts, CancelCalls, PauseCalls, Welcome
from agentserving_controlplane.engines.facts import Capabilities
from agentserving_controlplane.engines.health import EngineState
from agentserving_controlplane.errors import DomainError, OverloadedError
from agentserving_controlplane.metrics import exposition
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.store.port import Write
from agentserving_controlplane.table.program_index import ProgramIndex
from agentserving_controlplane.table.programs import OpenRequest
from agentserving_controlplane.table.states import Outcome
from controlplane.leader_builders import ACME, GLOBEX, admit, attach, end, leader, report, sent, until
from controlplane.table_builders import key, snapshot


def facts(plane: ControlPlane) -> Any:
    """Everything that a refused admission could have changed."""
    balancer = plane.balancer
    plane.engines.refresh()
    return (
        snapshot(plane.table),
        (dict(balancer._homes), {each: (p.load, p.chosen) for each, p in plane.engines.ranking.places.items()}),
        {e.engine_id: (dict(e.calls), e.call_us, e.outliers.failures, e.condition) for e in plane.engines},
        (plane.commits.pending, plane.commits.number, plane.revision, len(plane.keys._admissions)),
    )


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "NO_ENGINE"),
        ({"program_id": "new", "parent_program_id": "new-parent"}, "NO_ENGINE"),
        ({"program_id": "closed"}, "NO_ENGINE"),
        ({"exclude_engine_ids": frozenset({EngineId("e1")})}, "NO_ENGINE"),
        ({"model": "unknown", "exclude_engine_ids": frozenset()}, "MODEL_NOT_FOUND"),
        ({"idempotency_key": "k", "digest": "another"}, "IDEMPOTENCY_KEY_REUSED"),
        ({"idempotency_key": "k" * 129}, "KEY_TOO_LONG"),
    ],
)
async def test_a_refused_admission_changes_nothing_in_the_leader(fields: dict[str, Any], reason: str) -> None:
    async with leader() as plane:
        await attach(plane, capabilities=Capabilities(models=("m",)))
        admit(plane, "p", idempotency_key="k", digest="d")
        await plane.programs.open(OpenRequest(tenant=ACME, program_id=ProgramId("closed")))
        await plane.programs.close(key("closed", "acme"), Outcome.NONE)
        await plane.commits.flush()
        retried = admit(plane, "retried")
        before = facts(plane)
        exclude = {"exclude_engine_ids": frozenset({EngineId("e1")}), "retry_of_call_id": retried.call_id}
        for _ in range(3):
            with pytest.raises(DomainError) as caught:
                admit(plane, **{**exclude, **fields})
            assert caught.value.reason == reason
        assert facts(plane) == before


async def test_refused_calls_are_subject_to_backpressure_and_cost_the_next_one_nothing() -> None:
    async with leader(max_pending_writes=2) as plane:
        for _ in range(1000):
            with pytest.raises(DomainError, match="no engine"):
                admit(plane)
        assert (len(plane.table.rows), plane.commits.pending) == (0, 0)
        await attach(plane)
        admit(plane)
        admit(plane)
        before = facts(plane)
        with pytest.raises(OverloadedError):
            admit(plane)
        assert facts(plane) == before


# -- recovery --------------------------------------------------------------------------------------------------------


async def test_a_row_that_cannot_be_read_is_left_alone_and_counted_and_all_others_are_served() -> None:
    store = MemoryStore()
    async with leader(store) as plane:
        await attach(plane)
        for name in ("good", "bad"):
            await plane.programs.open(OpenRequest(tenant=ACME, program_id=ProgramId(name)))
        await plane.commits.flush()
        epoch = plane.epoch
    bad = dict.fromkeys(
        ("programs/acme\x00bad", "calls/acme\x00bad\x001", "late/no-number", "engines/e", "keys/k"), b"\xc1"
    )
    await store.commit(epoch, [Write(key, value) for key, value in bad.items()])
    async with leader(store) as plane:
        await attach(plane)
        assert plane.unreadable_rows == len(bad)
        assert b"agentserving_unreadable_rows 5.0" in exposition(plane)
        assert [row.program_id for row in plane.table.rows.values()] == ["good"]
        admit(plane, "good")
        assert bad.items() <= (await store.load()).items.items(), "nothing is deleted"
        await plane.programs.open(OpenRequest(tenant=ACME, program_id=ProgramId("bad")))
    async with leader(store) as plane:
        assert plane.unreadable_rows == len(bad) - 1, "its owner has written it again"


# -- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "never_started"),
    [(Outcome.FAILED, True), (Outcome.REJECTED, False), (Outcome.CANCELLED, True)],
)
async def test_a_call_that_no_engine_can_report_ends_at_once_and_says_how(
    outcome: Outcome, never_started: bool
) -> None:
    async with leader() as plane:
        await attach(plane)
        admission = admit(plane)
        end(plane, admission, outcome, never_started=never_started)
        end(plane, admission, outcome, never_started=never_started)
        assert (plane.table.open_calls, plane.table.totals.outcomes) == (0, {outcome: 1})
        assert not plane.engines.get(EngineId("e1")).in_flight


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.FAILED, Outcome.CANCELLED])
async def test_a_call_that_was_sent_ends_once_whether_its_report_comes_after_the_exchange_or_never(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call_ends.EXCHANGE_OVER_S < 2
    async with leader() as plane:
        session = await attach(plane)
        reported, silent = admit(plane, "p"), admit(plane, "p")
        end(plane, reported, outcome)
        await report(session, reported, service_us=7, outcome=Outcome.COMPLETED)
        assert (plane.table.open_calls, plane.table.totals.outcomes) == (1, {Outcome.COMPLETED: 1})
        monkeypatch.setattr(call_ends, "EXCHANGE_OVER_S", 0.05)
        end(plane, silent, outcome)
        await until(lambda: not plane.table.open_calls)
        assert plane.table.totals.calls_completed == 2
        assert not plane.engines.get(EngineId("e1")).in_flight
        assert plane.table.rows[key("p", "acme")].total_service_us == 7


async def test_another_tenants_call_cannot_be_ended() -> None:
    async with leader() as plane:
        await attach(plane)
        admission = admit(plane, "p")
        with pytest.raises(DomainError, match="no call"):
            end(plane, admission, Outcome.CANCELLED, tenant=GLOBEX, never_started=True)
        assert plane.table.open_calls == 1


async def test_a_call_that_an_engine_runs_ends_with_that_engines_report() -> None:
    async with leader() as plane:
        session = await attach(plane)
        admission = admit(plane, "p")
        await report(session, admission, service_us=5, running=True)
        end(plane, admission, Outcome.CANCELLED)
        assert plane.table.open_calls == 1
        assert sent(session, CancelCalls) == [CancelCalls((admission.call_id,))]
        await report(session, admission, service_us=9, outcome=Outcome.CANCELLED)
        assert (plane.table.open_calls, plane.table.rows[key("p", "acme")].total_service_us) == (0, 9)


async def test_a_call_whose_client_is_gone_ends_within_two_seconds_although_its_engine_is_silent() -> None:
    assert call_ends.EXCHANGE_OVER_S < 2
    async with leader() as plane:
        session = await attach(plane)
        admission = admit(plane, "p")
        await report(session, admission, service_us=5, running=True)
        session.detach()
        end(plane, admission, Outcome.CANCELLED)
        await until(lambda: not plane.table.open_calls)
        assert not plane.engines.get(EngineId("e1")).in_flight
        assert plane.table.rows[key("p", "acme")].total_service_us == 5
        assert plane.table.totals.outcomes == {Outcome.CANCELLED: 1}


async def test_a_retry_counts_against_the_engine_that_failed() -> None:
    async with leader() as plane:
        await attach(plane, "broken")
        for _ in range(5):
            first = admit(plane, exclude_engine_ids=frozenset({EngineId("works")}))
            works = await attach(plane, "works")
            retry = {"retry_of_call_id": first.call_id, "exclude_engine_ids": frozenset({first.engine_id})}
            second = admit(plane, first.program_id, **retry)
            assert (second.engine_id, second.program_id, second.attempt) == ("works", first.program_id, 2)
            assert not plane.engines.get(EngineId("broken")).in_flight
            await report(works, second, outcome=Outcome.COMPLETED)
        assert plane.table.open_calls == 0
        assert plane.engines.get(EngineId("broken")).state is EngineState.FAILING


async def test_an_engine_that_fails_at_once_does_not_attract_the_calls() -> None:
    async with leader() as plane:
        await attach(plane, "broken")
        working = await attach(plane, "works")
        taken = {"broken": 0, "works": 0}
        for _ in range(200):
            admission = admit(plane)
            taken[admission.engine_id] += 1
            if admission.engine_id == "broken":
                end(plane, admission, Outcome.REJECTED)
        assert working.engine is not None
        assert taken["broken"] < 20
        assert plane.engines.get(EngineId("broken")).state is EngineState.FAILING


# -- tenants ---------------------------------------------------------------------------------------------------------


async def test_two_tenants_with_one_program_id_share_nothing() -> None:
    async with leader() as plane:
        session = await attach(plane)
        ours, theirs = admit(plane, "triage", ACME), admit(plane, "triage", GLOBEX)
        assert ours.call_id != theirs.call_id
        assert plane.engines.get(EngineId("e1")).in_flight == 2
        await report(session, ours, ACME, service_us=100_000_000, outcome=Outcome.COMPLETED)
        assert plane.programs.get(key("triage", "globex")).root.attained_service_us == 0
        await plane.programs.pause(key("triage", "acme"))
        assert sent(session, PauseCalls) == [PauseCalls(key("triage", "acme"), True)]
        late = await attach(plane, "e2")
        assert sent(late, Welcome)[0].paused == (key("triage", "acme"),)
        _, count = await plane.programs.cancel(key("triage", "acme"))
        assert count == 0
        assert theirs.call_id in plane.table.index.calls


async def test_contexts_and_homes_of_two_tenants_are_apart_in_the_balancer() -> None:
    async with leader() as plane:
        session = await attach(plane, capabilities=Capabilities(num_blocks=1000, block_size=16))
        admission = admit(plane, "triage", ACME)
        await report(session, admission, ACME, prompt_tokens=5000, outcome=Outcome.COMPLETED)
        engine = plane.engines.get(EngineId("e1"))
        assert engine.capacity_tokens == 16_000
        (context,) = plane.balancer.contexts.of(key("triage", "acme")).values()
        assert context.hit_tokens(5000, engine) == 4500
        assert not plane.balancer.contexts.of(key("triage", "globex"))


# -- accounts --------------------------------------------------------------------------------------------------------


async def test_an_account_that_moves_is_sent_to_the_other_engines_that_run_calls_of_the_tree() -> None:
    async with leader() as plane:
        sessions = {name: await attach(plane, name) for name in ("e1", "e2", "e3")}
        admitted = {}
        for name in ("e1", "e2"):
            others = frozenset(map(EngineId, sessions)) - {EngineId(name)}
            admitted[name] = admit(plane, "p", exclude_engine_ids=others)
        for session in sessions.values():
            sent(session, Accounts)
        await report(sessions["e1"], admitted["e1"], service_us=7, outcome=Outcome.COMPLETED)
        assert not sent(sessions["e1"], Accounts)
        assert not sent(sessions["e3"], Accounts)
        ((account,),) = [message.accounts for message in sent(sessions["e2"], Accounts)]
        assert (account.root, account.attained_service_us) == (key("p", "acme"), 7)


async def test_a_report_costs_the_same_however_many_sub_agents_are_retained(monkeypatch: pytest.MonkeyPatch) -> None:
    visited = 0
    tree = ProgramIndex.tree

    def counting(self: ProgramIndex, row: Any) -> Any:
        nonlocal visited
        for found in tree(self, row):
            visited += 1
            yield found

    monkeypatch.setattr(ProgramIndex, "tree", counting)
    async with leader() as plane:
        session = await attach(plane)
        admit(plane, "root")
        for number in range(1000):
            child = OpenRequest(tenant=ACME, program_id=ProgramId(f"root/{number}"), parent=ProgramId("root"))
            plane.table.programs.open(child, plane.now())
            plane.settle()
        for _ in range(20):
            await report(session, admit(plane, "root"), service_us=5, outcome=Outcome.COMPLETED)
        assert visited == 0


# -- many calls ------------------------------------------------------------------------------------------------------


async def test_thousands_of_parallel_calls_of_a_program_are_admitted_cancelled_and_recovered() -> None:
    store = MemoryStore()
    async with leader(store) as plane:
        session = await attach(plane)
        for number in range(3000):
            admit(plane, "root", thread_id=f"t{number % 400}")
        await plane.commits.flush()
    async with leader(store) as plane:
        assert plane.table.open_calls == 3000
        session = await attach(plane)
        _, count = await plane.programs.cancel(key("root", "acme"))
        cancelled = [call for message in sent(session, CancelCalls) for call in message.call_ids]
        assert count == len(set(cancelled)) == 3000


async def test_calls_of_a_wide_program_expire_without_one_large_transaction() -> None:
    store = MemoryStore()
    async with leader(store, call_idle_s=0.05) as plane:
        await attach(plane)
        for _ in range(5000):
            admit(plane, "root")

        async def ticked() -> bool:
            await plane.tick()
            return not plane.table.open_calls

        async with asyncio.timeout(60):
            while not await ticked():
                await asyncio.sleep(0.05)
        await plane.commits.flush()
        assert plane.table.totals.outcomes == {Outcome.EXPIRED: 5000}
        assert [k for k in (await store.load()).items if k.startswith("calls/")] == []


async def test_a_long_recovery_lets_other_tasks_run_so_that_the_lease_is_renewed() -> None:
    store = MemoryStore()
    async with leader(store) as plane:
        for number in range(3 * ITEMS_PER_SLICE):
            plane.table.programs.open(OpenRequest(tenant=ACME, program_id=ProgramId(f"p{number}")), plane.now())
        plane.settle()
        await plane.commits.flush()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async with leader(store) as plane:
        task.cancel()
        assert plane.table.index.live.total == 3 * ITEMS_PER_SLICE
        assert turns >= 6
