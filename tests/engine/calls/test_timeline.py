"""The phases of a call follow each other without gaps, whatever happens to its requests."""

from __future__ import annotations

from agentserving.contract.phases import PhaseKind
from agentserving_engine.calls.timeline import MAX_PHASES, Timeline
from hypothesis import given
from hypothesis import strategies as st

HELD, QUEUE, PREFILL, DECODE, PREEMPTED = (
    PhaseKind.HELD, PhaseKind.QUEUE, PhaseKind.PREFILL, PhaseKind.DECODE, PhaseKind.PREEMPTED,
)  # fmt: skip


def test_a_call_waits_computes_its_prompt_decodes_and_does_so_again_after_a_preemption() -> None:
    timeline = Timeline(100)
    timeline.started("r", 110, 0)
    timeline.produced("r", 130)
    timeline.produced("r", 135)
    timeline.preempted("r", 160, 0)
    timeline.started("r", 200, 0)
    timeline.produced("r", 210)
    timeline.ended("r", 215, 0)
    assert timeline.past == ((QUEUE, 10), (PREFILL, 20), (DECODE, 30), (PREEMPTED, 40), (PREFILL, 10), (DECODE, 5))


def test_the_time_in_which_its_program_was_stopped_is_held_and_not_queued() -> None:
    timeline = Timeline(0, stopped_us=1000)
    assert timeline.phases(50, 1050) == ((HELD, 50),)
    timeline.started("r", 80, 1050)
    timeline.preempted("r", 90, 1050)
    # Paused and resumed while it waits again.
    timeline.started("r", 130, 1070)
    assert timeline.past == ((HELD, 50), (QUEUE, 30), (PREFILL, 10), (HELD, 20), (PREEMPTED, 20))


def test_of_several_requests_the_one_that_is_furthest_counts() -> None:
    timeline = Timeline(0)
    timeline.started("a", 10, 0)
    timeline.produced("a", 20)
    timeline.started("b", 25, 0)
    timeline.preempted("a", 30, 0)
    timeline.produced("b", 40)
    timeline.ended("b", 50, 0, others=True)
    timeline.started("a", 60, 0)
    timeline.ended("a", 70, 0)
    assert timeline.past == (
        (QUEUE, 10), (PREFILL, 10), (DECODE, 10), (PREFILL, 10), (DECODE, 10), (PREEMPTED, 10), (PREFILL, 10),
    )  # fmt: skip


def test_the_gap_between_two_requests_of_a_beam_search_is_no_preemption() -> None:
    timeline = Timeline(0)
    timeline.started("one", 10, 0)
    timeline.produced("one", 20)
    timeline.ended("one", 20, 0)
    timeline.arrived(25, 0)
    timeline.started("two", 30, 0)
    timeline.ended("two", 40, 0)
    assert timeline.past == ((QUEUE, 10), (PREFILL, 10), (DECODE, 5), (QUEUE, 5), (PREFILL, 10))


@given(
    st.lists(
        st.tuples(st.sampled_from(["started", "produced", "preempted", "ended"]), st.sampled_from("ab"),
                  st.integers(0, 50), st.integers(0, 60)),
        max_size=200,
    )
)  # fmt: skip
def test_phases_add_up_to_the_time_since_the_arrival_and_their_number_is_bounded(
    acts: list[tuple[str, str, int, int]],
) -> None:
    timeline, now, stopped = Timeline(7), 7, 0
    for act, key, later, stop in acts:
        now, stopped = now + later, stopped + min(stop, later)
        if act == "produced":
            timeline.produced(key, now)
        else:
            getattr(timeline, act)(key, now, stopped)
        assert sum(us for _, us in timeline.phases(now, stopped)) == now - 7
    # Each kind has at most one phase beyond the bound.
    assert len(timeline.past) <= MAX_PHASES + len(PhaseKind)
