"""Classes that `auto` gives a level of their own: sizes that are alike, and programs with many calls at a time."""

from __future__ import annotations

from dataclasses import replace

from agentserving.contract.phases import PrefixMiss
from agentserving.contract.policy import AUTO, FCFS, PROGRAM_PLAS, Level
from agentserving_controlplane.policy.auto import Choice, Chosen, Decided, decide
from agentserving_controlplane.policy.contention import (
    MIN_PROGRAMS,
    NARROW,
    NARROW_CLASS,
    WIDE,
    WIDE_CALLS,
    WIDE_CLASS,
    WINDOW,
    Contention,
    Crowd,
    Recent,
)
from agentserving_controlplane.policy.gittins import MIN_SAMPLES, with_ranks
from agentserving_controlplane.table.times import TimeTotals
from support.program_sizes import sizes_of, spread

FEW = [("chat", 1)] * 9


def contention(*programs: tuple[str, int], waiting: int = 50) -> Contention:
    return Contention.of(waiting, 10, programs)


def chosen(decided: Decided) -> dict[str | None, Chosen]:
    return {choice.class_name: choice.chosen for choice in decided.choices}


def levels_of_classes(decided: Decided) -> dict[str, tuple[Level, ...]]:
    return dict(decided.policy.classes)


def reason(decided: Decided, class_name: str | None = None) -> str:
    return next(choice.reason for choice in decided.choices if choice.class_name == class_name)


def test_wide_programs_get_a_level_of_their_own_before_any_has_finished() -> None:
    """In the levels of all they would sink before half of their calls have run, and under load none would finish."""
    decided = decide(AUTO, sizes_of({}, {"map-reduce": [0.0]}), contention(*FEW, ("map-reduce", WIDE_CALLS)), (), 5)
    assert chosen(decided) == {"map-reduce": Chosen.PROGRAM_FCFS, None: Chosen.PROGRAM_PLAS}
    assert [len(levels) for levels in levels_of_classes(decided).values()] == [1]
    assert decided.policy.levels == with_ranks(PROGRAM_PLAS.levels)
    assert (decided.policy.order, decided.policy.retention_milli) == (PROGRAM_PLAS.order, PROGRAM_PLAS.retention_milli)
    assert "most programs have 8 or more open calls" in reason(decided, "map-reduce")
    assert "with a level of their own: map-reduce" in reason(decided)


def test_its_level_is_where_the_service_falls_that_its_programs_still_need() -> None:
    own = with_ranks(AUTO.levels)
    for live_s, level in ((0.1, 0), (10.0, 3), (2000.0, 7)):
        wide = contention(("map-reduce", WIDE_CALLS))
        decided = decide(AUTO, sizes_of({}, {"map-reduce": [live_s] * 4}), wide, (), 5)
        assert levels_of_classes(decided)["map-reduce"] == (Level(rank=own[level].rank),), live_s


def test_a_class_of_like_sizes_keeps_its_order_among_programs_of_others_that_spread() -> None:
    sizes = sizes_of({"react": spread(0.2), "chat": spread(3.0)})
    decided = decide(AUTO, sizes, contention(*FEW, ("react", 1)), (), 5)
    assert chosen(decided) == {
        "react": Chosen.PROGRAM_FCFS, "chat": Chosen.PROGRAM_PLAS, None: Chosen.PROGRAM_PLAS
    }  # fmt: skip
    assert list(levels_of_classes(decided)) == ["react"]
    assert "sizes are alike" in reason(decided, "react")
    assert "one after the other, at the level of the service" in reason(decided, "react")


def test_a_wide_class_of_which_many_programs_are_tiny_goes_through_the_levels() -> None:
    """Conversations without a name among map-reduce programs without one must not wait for all before them."""
    sizes = sizes_of({"": spread(0.1, 100.0, 40) + spread(0.1, 0.3, 40)})
    decided = decide(AUTO, sizes, contention(*[("", WIDE_CALLS)] * 9, ("", 1)), (), 5)
    assert (decided.policy.classes, decided.policy.order) == ((), FCFS.order)
    assert chosen(decided) == {"": Chosen.FCFS, None: Chosen.FCFS}
    assert "of the open calls of the last 120 s are of programs with 8 or more" in reason(decided)


def test_between_many_and_few_wide_programs_of_other_classes_the_order_stays_what_it_is() -> None:
    sizes, before = sizes_of({"": spread(3.0)}), (Choice(class_name=None, chosen=Chosen.PROGRAM_PLAS, reason=""),)
    between = (WIDE + NARROW) / 2
    steps = (
        (WIDE, Chosen.FCFS, 1),
        (between, Chosen.FCFS, 1),
        (NARROW * 0.9, Chosen.PROGRAM_PLAS, 3),
        (between, Chosen.PROGRAM_PLAS, 3),
        (WIDE, Chosen.FCFS, 5),
    )
    for now_us, (share, expected, since_us) in enumerate(steps, start=1):
        crowd = Crowd(programs=1000, calls=1000, wide_programs=1, wide_calls=round(share * 1000))
        choices = decide(AUTO, sizes, Contention(9, 1, {"": crowd}), before, now_us).choices
        assert (choices[-1].chosen, choices[-1].since_us) == (expected, since_us), share
        before = choices[-1:]


def test_single_wide_programs_do_not_turn_the_order_back_and_forth() -> None:
    """The share is that of the last decisions together."""
    sizes, recent = sizes_of({"": spread(3.0)}), Recent()
    before: tuple[Choice, ...] = (Choice(class_name=None, chosen=Chosen.PROGRAM_PLAS, reason=""),)
    orders = list[Chosen]()
    # One decision of six sees a program with 16 of the 46 open calls, and then every one does.
    for now_us, wide in enumerate([*[*[False] * 5, True] * 4, *[True] * WINDOW], start=1):
        programs = [("", 1)] * 30 + [("", 2 * WIDE_CALLS)] * wide
        choices = decide(AUTO, sizes, recent.with_past(contention(*programs), TimeTotals()), before, now_us).choices
        orders.append(choices[-1].chosen)
        before = choices
    assert orders[:-WINDOW] == [Chosen.PROGRAM_PLAS] * 24
    assert orders[-1] == Chosen.FCFS


def test_evictions_are_a_share_of_the_prompts_of_the_last_decisions() -> None:
    recent, totals, shares = Recent(), TimeTotals(prompt_tokens=1000), list[float]()
    totals.misses[PrefixMiss.EVICTED] = (1, 500)
    # What was evicted before the first decision does not count, and nothing is divided by zero.
    for evicted in [0, *[100] * 2, *[0] * WINDOW]:
        calls, tokens = totals.misses[PrefixMiss.EVICTED]
        totals.misses[PrefixMiss.EVICTED] = (calls + 1, tokens + evicted)
        shares.append(recent.with_past(Contention(), totals).evicted)
        totals.prompt_tokens += 1000
    assert shares[:3] == [0.0, 0.1, 0.1]
    assert shares[-1] == 0.0


def crowd_of(wide_share: float, programs: int = 20) -> Contention:
    return Contention(9, 1, {"": Crowd(programs, 100, round(wide_share * programs), 50)})


def test_a_class_is_wide_until_hardly_any_of_its_programs_are() -> None:
    between = (WIDE_CLASS + NARROW_CLASS) / 2
    assert crowd_of(WIDE_CLASS).is_wide_class("", was_wide=False)
    assert not crowd_of(between).is_wide_class("", was_wide=False)
    assert crowd_of(between).is_wide_class("", was_wide=True)
    assert not crowd_of(0).is_wide_class("", was_wide=True)


def test_the_last_programs_of_a_load_and_a_cluster_in_which_nothing_waits_change_no_width() -> None:
    last, calm = crowd_of(0, MIN_PROGRAMS - 1), replace(crowd_of(WIDE_CLASS), waiting=0)
    assert last.is_wide_class("", was_wide=True)
    assert not calm.is_wide_class("", was_wide=False)
    assert calm.is_wide_class("", was_wide=True)
    assert not crowd_of(WIDE_CLASS).is_wide_class("another", was_wide=False)


def test_the_wide_share_counts_calls_of_programs_with_many_open() -> None:
    assert contention().wide_share() == 0.0
    many = contention(("a", 0), ("b", WIDE_CALLS - 1), ("c", WIDE_CALLS))
    assert many.wide_share() == WIDE_CALLS / (2 * WIDE_CALLS - 1)
    assert many.wide_share(without={"c"}) == 0.0
    assert many.wide_share(without={"b"}) == 1.0


def test_a_restart_keeps_what_is_wide() -> None:
    """The control plane knows the live programs, and no open call yet."""
    sizes = sizes_of({}, {"map-reduce": [0.0]})
    before = decide(AUTO, sizes, contention(*FEW, ("map-reduce", WIDE_CALLS)), (), 5).choices
    again = decide(AUTO, sizes, Contention(), before, 9)
    assert chosen(again)["map-reduce"] is Chosen.PROGRAM_FCFS
    assert again.choices[0].since_us == 5


def test_wide_classes_that_were_never_judged_are_forgotten_with_their_programs() -> None:
    """Where each program has a name of its own."""
    before = decide(AUTO, sizes_of({}, {"run-1": [1.0]}), contention(("run-1", WIDE_CALLS)), (), 5).choices
    after = decide(AUTO, sizes_of({}, {"run-2": [1.0]}), contention(("run-2", WIDE_CALLS)), before, 6)
    assert set(chosen(after)) == {"run-2", None}


def test_wide_classes_that_are_not_judged_yet_do_not_make_classes_differ() -> None:
    """Few programs of unknown size do not take the order of arrival from classes that are alike."""
    sizes = sizes_of({"lookup": spread(0.2, 1.0), "report": spread(0.2, 100.0)}, {"new": [1.0] * 10})
    decided = decide(AUTO, sizes, contention(("new", WIDE_CALLS)), (), 5)
    assert chosen(decided)[None] is Chosen.PROGRAM_FCFS
    assert set(levels_of_classes(decided)) >= {"lookup", "report"}
    assert len(sizes.live["new"]) < MIN_SAMPLES
