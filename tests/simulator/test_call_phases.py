"""The session's records say where a call's time went and what became of its prefix: on the simulated engine."""

from __future__ import annotations

from agentserving.contract.channel import CallRecord, SetPaused
from agentserving.contract.phases import PhaseKind, PrefixMiss
from agentserving_engine.calls import CallBook
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.engine import Limits, SimulatedEngine
from agentserving_simulator.requests import SimRequest
from simulator.test_engine import CHECK, TENANT, drive, request, step, ticket


def engine(**limits: int) -> SimulatedEngine:
    return SimulatedEngine(CallBook(CHECK), Limits(**limits), CostModel())


def records(of: SimulatedEngine) -> dict[str, CallRecord]:
    return {record.program_id: record for record in of.session.book.outbox.unacked()}


def by_kind(record: CallRecord) -> dict[int, int]:
    found: dict[int, int] = {}
    for kind, us in record.phases:
        found[kind] = found.get(kind, 0) + us
    return found


def test_phases_of_every_call_add_up_to_its_stay_whatever_the_pool_does() -> None:
    pressed = engine(max_num_seqs=3, num_blocks=45)
    for index in range(5):
        pressed.add(request(f"r{index}", 200, 100), ticket(f"p{index}"), 0, 5.0)
    ends: dict[str, int] = {}
    now = 0
    while pressed.requests:
        _, now = step(pressed, now)
        for program in records(pressed):
            ends.setdefault(program, now)
    done = records(pressed)
    assert len(done) == 5
    for program, record in done.items():
        assert sum(us for _, us in record.phases) == ends[program]
        assert (PhaseKind.PREEMPTED in by_kind(record)) == (record.preemptions > 0)
        assert by_kind(record)[PhaseKind.PREFILL] > 0
        assert record.arrive_unix_us == 5_000_000
    assert any(record.preemptions for record in done.values())
    assert any(PhaseKind.QUEUE in by_kind(record) for record in done.values())


def test_a_paused_program_is_held_and_not_queued() -> None:
    paused = engine(num_blocks=100)
    paused.session.execute(SetPaused([(TENANT, "p")]), 0)
    paused.add(request("r", 32, 2), ticket("p"), 0, 0.0)
    assert step(paused, 50_000)[0] == []
    paused.session.execute(SetPaused([]), 60_000)
    drive(paused, 60_000)
    assert records(paused)["p"].phases[0] == (PhaseKind.HELD, 60_000)


def test_a_second_call_says_whether_its_prefix_was_there_had_changed_or_was_evicted() -> None:
    def second(change: int | None, other: int) -> CallRecord:
        made = engine(max_num_seqs=1, num_blocks=40)
        first = request("r", 160, 32)
        made.add(first, ticket("p", 0), 0, 0.0)
        now = drive(made)
        if other:
            made.add(request("other", other, 1), ticket("q"), now, 0.0)
            now = drive(made, now)
        tokens = [*first.tokens, *(f"new.{index}" for index in range(50))]
        if change is not None:
            tokens[change] = "changed"
        made.session.book.outbox.acknowledge([(f"p.{TENANT}.0", 1)])
        made.add(SimRequest("s", tokens, 4), ticket("p", 1), now, 0.0)
        drive(made, now)
        return records(made)["p"]

    kept = second(None, 0)
    assert (kept.prefix_miss, kept.common_tokens, kept.cached_tokens) == (PrefixMiss.NONE, 176, 176)
    changed = second(40, 0)
    assert (changed.prefix_miss, changed.common_tokens) == (PrefixMiss.DIVERGED, 32)
    answered = second(170, 0)
    assert (answered.prefix_miss, answered.common_tokens) == (PrefixMiss.ANSWER_CHANGED, 160)
    gone = second(None, 600)
    assert gone.prefix_miss == PrefixMiss.EVICTED
    assert gone.cached_tokens < gone.common_tokens == 176


def test_the_first_call_of_a_program_is_first_and_another_salt_is_told() -> None:
    made = engine(num_blocks=100)
    first = request("r", 64, 1)
    made.add(first, ticket("p", 0), 0, 0.0)
    now = drive(made)
    assert records(made)["p"].prefix_miss == PrefixMiss.FIRST
    made.session.book.outbox.acknowledge([(f"p.{TENANT}.0", 1)])
    made.add(SimRequest("s", list(first.tokens), 1, salt="other"), ticket("p", 1), now, 0.0)
    drive(made, now)
    assert records(made)["p"].prefix_miss == PrefixMiss.SALT
