"""What the sidecar says to the leader and to its engine: reports, ends of boots, directives, health."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest
from agentserving.contract.channel import (
    AckCalls,
    Load,
    PolicyResult,
    SetAccounts,
    SetPaused,
    SetPolicy,
    SetShares,
    ToolWait,
)
from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import preset, to_dict
from agentserving_sidecar import sidecar as sidecar_module
from agentserving_sidecar.health import FrontState, State
from agentserving_sidecar.journal import Entry, Journal, JournalUnavailableError
from agentserving_sidecar.sidecar import UNCHANGED_BEAT_S
from agentserving_sidecar.values import Ack, Directive, Drain, Hello, Pause, PolicyVersion, Report, Welcome
from sidecar.ports import hello, new_sidecar, record, report, running_sidecar, until

ACME_X = ProgramKey(Tenant("acme"), ProgramId("x"))
GLOBEX_X = ProgramKey(Tenant("globex"), ProgramId("x"))
PLAS = PolicyVersion(version=3, name="plas", policy=preset("plas"))


def welcome(epoch: int, *paused: ProgramKey) -> Welcome:
    return Welcome(epoch=epoch, policy=PLAS, paused=frozenset(paused))


# -- terminal records ----------------------------------------------------------------------------------------------


async def test_a_terminal_record_is_on_disk_before_the_plugin_may_forget_it(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.engine_report(report(record("p.1.0"), record("p.1.1"), record("p.1.2", outcome="")))
        assert not rig.engine.of(AckCalls)
        await until(lambda: bool(rig.engine.of(AckCalls)))
        assert rig.engine.of(AckCalls) == [AckCalls([("p.1.0", 1), ("p.1.1", 1)])]
        assert [entry.record.call_id for entry in rig.sidecar.journal.entries()] == ["p.1.0", "p.1.1"]
        assert rig.leader.recorded == [(2, "p.1.0"), (2, "p.1.1")]
        (progress,) = [each for each in rig.leader.reports if each.calls and not each.seq]
        assert [call.call_id for _, call in progress.calls] == ["p.1.2"]


async def test_an_ended_call_costs_one_message_to_the_leader_and_it_says_how_busy_the_engine_is(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.leader.sent.clear()
        load = Load(running=3)
        rig.sidecar.engine_report(report(record("p.1.0"), load=load))
        await until(lambda: bool(rig.leader.recorded))
        (only,) = rig.leader.sent
        assert isinstance(only, Report)
        assert only.load == load
        rig.sidecar.engine_report(report(load=Load(running=2)))
        heartbeat = rig.leader.sent[-1]
        assert isinstance(heartbeat, Report)
        assert heartbeat.load == Load(running=2)


async def test_a_heartbeat_that_says_nothing_new_is_sent_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_us = 0
    monkeypatch.setattr(sidecar_module, "_now_us", lambda: now_us)
    async with running_sidecar(tmp_path) as rig:

        def beats(load: Load) -> int:
            rig.leader.sent.clear()
            rig.sidecar.engine_report(report(load=load))
            return len(rig.leader.reports)

        rig.sidecar.front_answered(FrontState.HEALTHY, "")
        assert beats(Load(running=1)) == 1
        now_us += 1_000_000
        assert beats(Load(running=1, last_step_age_us=900_000)) == 0, "only its age has changed"
        assert beats(Load(running=2)) == 1
        now_us += int(UNCHANGED_BEAT_S * 1e6)
        assert beats(Load(running=2)) == 1, "it is due"
        rig.sidecar.greeting()
        assert beats(Load(running=2)) == 1, "a new stream's leader knows nothing"
        rig.sidecar.front_answered(FrontState.REFUSED, "connection refused")
        assert not rig.sidecar.engine.health.is_serving
        assert beats(Load(running=2)) == 1, "an engine in trouble is heard at every beat"


async def test_an_acknowledged_report_leaves_the_journal(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.engine_report(report(record("p.1.0")))
        await until(lambda: bool(rig.sidecar.journal.unacked))
        rig.sidecar.received(Ack(1))
        await until(lambda: rig.sidecar.is_drained)


async def test_an_acknowledgement_of_numbers_that_were_never_given_out_covers_no_later_record(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.received(Ack(1_000_000))
        for number in range(2):
            rig.sidecar.engine_report(report(record(f"p.1.{number}")))
            await until(lambda: bool(rig.sidecar.journal.unacked))
            rig.sidecar.received(Ack(number + 1))
            await until(lambda: rig.sidecar.is_drained)
    with closing(Journal(tmp_path)) as journal:
        assert not journal.unacked


async def test_while_the_disk_takes_nothing_the_plugin_keeps_the_records_and_the_leader_knows_of_the_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentserving_sidecar.recording.RETRY_S", 0.05)
    async with running_sidecar(tmp_path) as rig:
        journal, attempts, is_full = rig.sidecar.journal, 0, True
        write = journal.append_all

        def append_all(records: object) -> list[Entry]:
            nonlocal attempts
            attempts += 1
            if is_full:
                raise JournalUnavailableError("no space left on device")
            return write(records)  # type: ignore[arg-type]

        monkeypatch.setattr(journal, "append_all", append_all)
        rig.sidecar.engine_report(report(record("p.1.0")))
        await until(lambda: attempts >= 3)
        assert not rig.engine.of(AckCalls)
        assert not rig.sidecar.is_drained
        ends = [each for each in rig.leader.reports if each.calls]
        assert [(each.seq, [call.call_id for _, call in each.calls]) for each in ends] == [(0, ["p.1.0"])]
        is_full = False
        await until(lambda: bool(rig.engine.of(AckCalls)))
        assert rig.leader.recorded == [(1, "p.1.0")]


async def test_records_that_did_not_fit_in_memory_come_again_when_the_disk_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentserving_sidecar.recording.MAX_WAITING", 3)
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.engine_report(report(*(record(f"p.1.{number}") for number in range(5))))
        await until(lambda: rig.engine.reconnections == 1)
        # The plugin sends again what was not acknowledged.
        rig.sidecar.engine_report(report(record("p.1.3"), record("p.1.4")))
        await until(lambda: len(rig.leader.recorded) == 5)
        assert rig.engine.reconnections == 1


async def test_a_record_that_is_sent_twice_while_it_waits_is_stored_once(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        for _ in range(2):
            rig.sidecar.engine_report(report(record("p.1.0")))
        await until(lambda: bool(rig.leader.recorded))
        assert rig.leader.recorded == [(1, "p.1.0")]


# -- boots ---------------------------------------------------------------------------------------------------------


async def test_the_last_records_of_a_boot_come_before_its_end_and_both_before_the_next_boots_hello(
    tmp_path: Path,
) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.engine_report(report(record("p.1.0")))
        rig.leader.sent.clear()
        rig.sidecar.engine_hello(hello("b2"))
        await until(lambda: bool(rig.leader.hellos))
        last, down, new = [m for m in rig.leader.sent if isinstance(m, Hello) or m.seq or m.engine_down]  # type: ignore[union-attr]
        assert isinstance(last, Report)
        assert isinstance(down, Report)
        assert isinstance(new, Hello)
        assert (last.seq, last.boot_id, last.calls[0][0]) == (1, "b1", "b1")
        assert (down.engine_down, down.boot_id) == (True, "b1")
        assert new.engine is not None
        assert new.engine.boot_id == "b2"
        assert new.unacked_seq == 1


async def test_a_journal_with_records_of_two_boots_is_replayed_with_the_boot_of_each(tmp_path: Path) -> None:
    with closing(Journal(tmp_path)) as journal:
        journal.append("b1", [record("p.1.0"), record("p.1.1")])
        journal.append("b2", [record("p.1.2")])
        greeting, *reports = new_sidecar(journal).sidecar.greeting()
    assert isinstance(greeting, Hello)
    assert greeting.unacked_seq == 3
    found = [(r.seq, r.boot_id, [boot for boot, _ in r.calls]) for r in reports if isinstance(r, Report)]
    assert found == [(2, "b1", ["b1", "b1"]), (3, "b2", ["b2"])]


async def test_what_is_recorded_while_the_journal_is_replayed_is_sent_once(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.engine_report(report(record("p.1.0")))
        await until(lambda: bool(rig.sidecar.journal.unacked))
        # On disk, but the event loop has not heard of it yet when a new stream begins.
        stream = rig.sidecar.greeting()
        before = len(rig.leader.sent)
        await until(lambda: rig.sidecar.recorder.is_idle)
        stream += rig.leader.sent[before:]
        assert [m.seq for m in stream if isinstance(m, Report) and m.seq] == [1]


async def test_another_boot_ends_a_drain_and_the_same_one_does_not(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.drain()
        rig.sidecar.engine_hello(hello("b1"))
        assert rig.leader.hellos[-1].draining
        rig.sidecar.engine_hello(hello("b2"))
        assert not rig.leader.hellos[-1].draining


# -- directives ----------------------------------------------------------------------------------------------------


async def test_programs_of_two_tenants_with_one_id_are_paused_apart(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.received(welcome(1, ACME_X))
        rig.sidecar.received(Directive(1, Pause(GLOBEX_X, True)))
        rig.sidecar.received(Directive(1, Pause(ACME_X, False)))
        paused = [message.programs for message in rig.engine.of(SetPaused)]  # type: ignore[union-attr]
        assert paused == [[("acme", "x")], [("acme", "x"), ("globex", "x")], [("globex", "x")]]


async def test_accounts_and_tool_waits_are_passed_on(tmp_path: Path) -> None:
    wait = ToolWait(
        tenant="acme", root_program_id="x", program_id="y", thread_id="t", waiting=True, expected_us=2_000_000
    )
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.received(welcome(1))
        for action in (SetAccounts([("acme", "x", 5, 6)]), wait):
            rig.sidecar.received(Directive(1, action))
            assert rig.engine.sent[-1] == action


async def test_an_engine_that_boots_gets_the_policy_the_paused_programs_and_the_shares(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.received(welcome(1, ACME_X))
        shares = SetShares([("acme", 2)])
        rig.sidecar.received(Directive(1, shares))
        assert rig.engine.sent[-1] == shares
        rig.engine.sent.clear()
        rig.sidecar.engine_hello(hello("b2"))
        assert rig.engine.sent == [SetPolicy(3, to_dict(preset("plas"))), SetPaused([("acme", "x")]), shares]


async def test_directives_and_welcomes_of_an_older_epoch_are_ignored(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.received(welcome(5, ACME_X))
        rig.engine.sent.clear()
        rig.sidecar.received(welcome(4))
        rig.sidecar.received(Directive(4, Pause(ACME_X, False)))
        rig.sidecar.received(Directive(4, Drain()))
        assert not rig.engine.sent
        assert not rig.sidecar.draining
        assert rig.sidecar.hello().epoch == 5


async def test_a_policy_that_cannot_be_read_is_refused_and_not_sent(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.received(welcome(1))
        rig.engine.sent.clear()
        unreadable = PolicyVersion(version=4, name="new", policy=None, error="policy.order: unknown value")
        rig.sidecar.received(Directive(1, unreadable))
        assert rig.leader.sent[-1] == PolicyResult(4, "policy.order: unknown value")
        assert not rig.engine.sent


async def test_a_directive_of_an_unknown_kind_is_ignored(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.received(Directive(1, None))
        assert not rig.engine.sent


# -- health --------------------------------------------------------------------------------------------------------


async def test_a_sidecar_whose_engine_has_not_booted_attaches_as_loading(tmp_path: Path) -> None:
    with closing(Journal(tmp_path)) as journal:
        (greeting,) = new_sidecar(journal).sidecar.greeting()
    assert isinstance(greeting, Hello)
    assert greeting.engine is None
    assert greeting.health.state is State.LOADING


async def test_a_lost_engine_process_is_reported_with_a_reason_immediately(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        assert rig.leader.reports[-1].health.is_serving
        rig.sidecar.engine_disconnected()
        rig.sidecar.engine_absent()
        down = rig.leader.reports[-1].health
        assert (down.state, "engine process has ended" in down.reason) == (State.DOWN, True)
        rig.sidecar.engine_hello(hello("b2"))
        assert rig.leader.hellos[-1].health.state is State.LOADING
        rig.sidecar.front_answered(FrontState.HEALTHY, "")
        assert rig.leader.reports[-1].health.is_serving


async def test_each_report_carries_the_health_and_the_measured_price_of_a_token(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.engine_report(report(load=Load(running=1, prefill_us_per_token=32.5)))
        last = rig.leader.reports[-1]
        assert last.health.is_serving
        assert last.load is not None
        assert last.load.prefill_us_per_token == 32.5


async def test_a_changed_list_of_models_is_said_in_another_hello_of_the_same_boot(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.models_changed(("base", "adapter"))
        again = rig.leader.hellos[-1]
        assert again.models == ("base", "adapter")
        assert again.engine == hello("b1")


async def test_the_health_is_decided_on_although_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentserving_sidecar.health.SILENT_US", 100_000)
    async with running_sidecar(tmp_path) as rig:
        watching = asyncio.create_task(rig.sidecar.watch_health())
        await until(lambda: rig.leader.reports[-1].health.state is State.STUCK)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
