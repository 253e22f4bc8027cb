"""A starving call runs ahead of all classes, not only ahead of its own."""

from __future__ import annotations

from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import Level, Order, Policy
from agentserving_engine.policy import CallFacts, CallQueue, Room

SECOND = 1_000_000
# Programs of class `late` have one level, whose rank is worse than that of all others.
POLICY = Policy(
    levels=(Level(rank=0),), classes=(("late", (Level(rank=9),)),), order=Order.PROGRAM_ARRIVAL, beta_milli=10_000
)


def facts(name: str, class_name: str) -> CallFacts:
    return CallFacts(name, ProgramKey(Tenant("t"), ProgramId(name)), attained_service_us=SECOND, class_name=class_name)


def decide(queue: CallQueue, now_us: int) -> tuple[str, ...]:
    none = Room(slots=0, free_blocks=0, need_blocks=lambda key: 1, returns_blocks=lambda key: 1)
    return queue.decide(now_us, none).promoted


def test_a_call_of_the_worst_class_is_promoted_ahead_of_all_others() -> None:
    queue = CallQueue(POLICY)
    queue.arrive(facts("starving", "late"), 0)
    queue.arrive(facts("first", ""), 1)
    assert queue.first_waiting(2) == ["first", "starving"]
    assert decide(queue, 9 * SECOND) == ()
    assert decide(queue, 10 * SECOND) == ("starving",)
    queue.arrive(facts("newcomer", ""), 11 * SECOND)
    # Of one rank now: the program that arrived first goes first.
    assert queue.first_waiting(3) == ["starving", "first", "newcomer"]
    # It is at the front already, so it does not starve.
    assert decide(queue, 100 * SECOND) == ()


def test_a_level_that_programs_start_at_counts_as_service_when_they_wait() -> None:
    """Otherwise newcomers of such a class would starve first, and each would overtake those before it."""
    policy = Policy(
        levels=(Level(SECOND, SECOND, 0), Level(7 * SECOND, 6 * SECOND, 4), Level(rank=8)),
        classes=(("wide", (Level(rank=4),)), ("huge", (Level(rank=9),))),
        order=Order.PROGRAM_ARRIVAL,
        beta_milli=10_000,
    )
    queue = CallQueue(policy)
    for name in ("wide", "huge"):
        program = ProgramKey(Tenant("t"), ProgramId(name))
        queue.arrive(CallFacts(name, program, class_name=name), 0)
    # What programs of no class have received at that rank, and at the next better one.
    assert decide(queue, 10 * SECOND - 1) == ()
    assert decide(queue, 10 * SECOND) == ("wide",)
    assert decide(queue, 70 * SECOND - 1) == ()
    assert decide(queue, 70 * SECOND) == ("huge",)
