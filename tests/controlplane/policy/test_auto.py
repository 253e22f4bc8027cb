"""What the policy `auto` chooses from the sizes of programs, and how the control plane carries it out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from agentserving.contract.policy import AUTO, FCFS, PROGRAM_FCFS, PROGRAM_PLAS, Level, Policy, from_dict, to_dict
from agentserving.contract.policy_message import policy_from, policy_to
from agentserving.v1 import admin_service_pb2, call_service_pb2, engine_service_pb2, program_service_pb2, types_pb2
from agentserving_controlplane import upkeep
from agentserving_controlplane.metrics import exposition
from agentserving_controlplane.policy import auto
from agentserving_controlplane.policy.auto import ALIKE, MAX_CHOICES, SPREAD, Choice, Chosen, Decided
from agentserving_controlplane.policy.contention import BUSY, CALM, CROWDED, EVICTED, ROOMY, Contention, Crowd
from agentserving_controlplane.policy.gittins import MIN_SAMPLES, Sizes
from hypothesis import given
from hypothesis import strategies as st
from support.program_sizes import sizes_of, spread
from support.served_plane import PlayedEngine, ServedPlane

SECOND = 1_000_000
FULL_CACHES = Contention(waiting=1000, running=10, context=2 * CROWDED, evicted=2 * EVICTED)
LONG_QUEUES, NO_QUEUES = Contention(waiting=1000, running=10), Contention(waiting=0, running=10)


def decide(
    policy: Policy, sizes: Sizes, before: Iterable[Choice], now_us: int, contention: Contention = LONG_QUEUES
) -> Decided:
    return auto.decide(policy, sizes, contention, before, now_us)


def chosen(decided: Decided) -> dict[str | None, Chosen]:
    return {choice.class_name: choice.chosen for choice in decided.choices}


def choice_of(decided: Decided, class_name: str | None = None) -> Choice:
    return next(choice for choice in decided.choices if choice.class_name == class_name)


def test_sizes_are_not_alike_while_some_programs_are_tiny_beside_the_mean() -> None:
    large, tiny = spread(0.1, 10.0, 80), spread(0.1, 0.3, 20)
    choice = choice_of(decide(AUTO, sizes_of({"mixed": large + tiny}), (), 5))
    assert choice.cv2 < ALIKE
    assert (choice.alike, choice.chosen) == (False, Chosen.PROGRAM_PLAS)
    assert "mean size times mean inverse 6." in choice.reason
    assert choice_of(decide(AUTO, sizes_of({"mixed": large}), (), 5)).alike


def test_programs_of_like_sizes_finish_one_after_the_other() -> None:
    decided = decide(AUTO, sizes_of({"react": spread(0.3)}), (), 5)
    assert decided.policy.levels == (Level(),)
    assert decided.policy.classes == ()
    assert (decided.policy.order, decided.policy.retention_milli) == (PROGRAM_FCFS.order, AUTO.retention_milli)
    assert chosen(decided) == {"react": Chosen.PROGRAM_FCFS, None: Chosen.PROGRAM_FCFS}
    choice = choice_of(decided)
    assert (choice.finished, choice.since_us) == (400, 5)
    assert "sizes are alike: CV^2 of program service 0." in choice.reason


def test_programs_of_like_sizes_go_by_the_arrival_of_calls_while_queues_are_short() -> None:
    decided = decide(AUTO, sizes_of({"react": spread(0.3)}), (), 5, NO_QUEUES)
    assert (decided.policy.levels, decided.policy.order, decided.policy.retention_milli) == (
        FCFS.levels, FCFS.order, FCFS.retention_milli
    )  # fmt: skip
    assert chosen(decided) == {"react": Chosen.FCFS, None: Chosen.FCFS}
    assert "0 calls wait and 10 run" in choice_of(decided).reason


def test_short_queues_do_not_take_the_levels_from_programs_of_different_sizes() -> None:
    sizes = sizes_of({"chat": spread(2.0)})
    before = decide(AUTO, sizes, (), 5).choices
    decided = decide(AUTO, sizes, before, 6, NO_QUEUES)
    assert (decided.policy.levels, chosen(decided)[None]) == (PROGRAM_PLAS.levels, Chosen.PROGRAM_PLAS)


def test_calls_go_by_their_arrival_until_some_wait() -> None:
    """A cluster that has seen nothing does what stock vLLM does."""
    for contention in (Contention(), NO_QUEUES):
        decided = decide(AUTO, sizes_of({}), (), 5, contention)
        assert (decided.policy.levels, decided.policy.order) == (FCFS.levels, FCFS.order)
        assert "until some wait" in choice_of(decided).reason
    decided = decide(AUTO, sizes_of({}), decided.choices, 6, Contention(waiting=1, running=10))
    assert chosen(decided) == {None: Chosen.PROGRAM_PLAS}
    assert chosen(decide(AUTO, sizes_of({}), decided.choices, 7, NO_QUEUES)) == {None: Chosen.PROGRAM_PLAS}


def test_classes_that_differ_only_from_each_other_go_by_the_arrival_of_calls_while_queues_are_short() -> None:
    sizes = sizes_of({"lookup": spread(0.2, 1.0), "report": spread(0.2, 100.0)})
    decided = decide(AUTO, sizes, (), 5, NO_QUEUES)
    assert (decided.policy.levels, decided.policy.classes, decided.policy.order) == ((Level(),), (), FCFS.order)
    assert chosen(decided) == {"lookup": Chosen.FCFS, "report": Chosen.FCFS, None: Chosen.FCFS}


def test_between_short_and_long_queues_a_choice_stays_what_it_is() -> None:
    sizes, running = sizes_of({"react": spread(0.3)}), 100
    between = Contention(waiting=round(running * (CALM + BUSY) / 2), running=running)
    before: tuple[Choice, ...] = ()
    steps = (
        (between, Chosen.FCFS, 1),
        (Contention(waiting=round(running * BUSY), running=running), Chosen.PROGRAM_FCFS, 2),
        (between, Chosen.PROGRAM_FCFS, 2),
        # No engine has reported yet, or nothing runs.
        (Contention(), Chosen.PROGRAM_FCFS, 2),
        (Contention(waiting=round(running * CALM) - 1, running=running), Chosen.FCFS, 5),
        (Contention(), Chosen.FCFS, 5),
        # Nothing can start.
        (Contention(waiting=1), Chosen.PROGRAM_FCFS, 7),
    )
    for now_us, (contention, expected, since_us) in enumerate(steps, start=1):
        decided = decide(AUTO, sizes, before, now_us, contention)
        assert (choice_of(decided).chosen, choice_of(decided).since_us) == (expected, since_us), contention
        before = decided.choices


def test_waiting_calls_count_as_many_while_contexts_evict_each_other() -> None:
    """All programs would end late, however few calls wait."""
    sizes, between = sizes_of({"react": spread(0.3)}), (CROWDED + ROOMY) / 2
    before: tuple[Choice, ...] = ()
    steps = (
        (1, between, EVICTED, Chosen.FCFS, 1),
        (0, 2 * CROWDED, EVICTED, Chosen.FCFS, 1),
        # Contexts of programs that share a long prompt seem larger than they are.
        (1, 2 * CROWDED, EVICTED / 2, Chosen.FCFS, 1),
        (1, CROWDED, EVICTED, Chosen.PROGRAM_FCFS, 4),
        # The order has ended the evictions.
        (1, between, 0.0, Chosen.PROGRAM_FCFS, 4),
        (1, ROOMY * 0.9, EVICTED, Chosen.FCFS, 6),
    )
    for now_us, (waiting, context, evicted, expected, since_us) in enumerate(steps, start=1):
        decided = decide(AUTO, sizes, before, now_us, Contention(waiting, 100, context=context, evicted=evicted))
        assert (choice_of(decided).chosen, choice_of(decided).since_us) == (expected, since_us), now_us
        assert f"{context:.0%} of the KV caches" in choice_of(decided).reason
        before = decided.choices


def test_where_small_programs_would_pay_for_it_long_queues_alone_are_no_reason() -> None:
    """Sizes are alike, but a third of the programs are small."""
    sizes = sizes_of({"react": spread(0.1, 2.5, 30) + spread(0.1, 16.0, 60)})
    decided = decide(AUTO, sizes, (), 5, LONG_QUEUES)
    assert choice_of(decided).chosen is Chosen.FCFS
    assert "times the time per token, not for long queues alone" in choice_of(decided).reason
    assert choice_of(decide(AUTO, sizes, (), 5, FULL_CACHES)).chosen is Chosen.PROGRAM_FCFS
    # Wide programs would all end late by the arrival of their calls.
    wide = replace(LONG_QUEUES, crowds={"react": Crowd(20, 100, 1, 10)})
    assert choice_of(decide(AUTO, sizes, (), 5, wide)).chosen is Chosen.PROGRAM_FCFS


def test_programs_of_different_sizes_go_through_the_levels() -> None:
    decided = decide(AUTO, sizes_of({"chat": spread(2.0)}), (), 5)
    assert (decided.policy.levels, decided.policy.classes) == (PROGRAM_PLAS.levels, ())
    assert chosen(decided) == {"chat": Chosen.PROGRAM_PLAS, None: Chosen.PROGRAM_PLAS}
    assert "sizes spread" in choice_of(decided).reason


def test_too_few_programs_choose_the_levels_and_say_so() -> None:
    decided = decide(AUTO, sizes_of({"react": [1.0] * (MIN_SAMPLES - 1)}), (), 5)
    assert decided.policy.levels == PROGRAM_PLAS.levels
    assert choice_of(decided).reason == f"fewer than {MIN_SAMPLES} programs have finished: {MIN_SAMPLES - 1}"


def test_classes_too_small_to_be_judged_are_judged_together() -> None:
    sizes = {f"run {number}": [size] for number, size in enumerate(spread(0.3, count=MIN_SAMPLES + 1))}
    assert chosen(decide(AUTO, sizes_of(sizes), (), 5)) == {None: Chosen.PROGRAM_FCFS}


def test_large_programs_that_have_not_finished_count_as_large() -> None:
    """Of 40 programs that began, the 30 small ones have finished: looking at those alone, sizes would be alike."""
    finished = {"search": spread(0.1, count=MIN_SAMPLES)}
    assert decide(AUTO, sizes_of(finished), (), 5).policy.levels == (Level(),)
    live = {"search": [80.0 + number for number in range(10)]}
    assert decide(AUTO, sizes_of(finished, live), (), 5).policy.levels == PROGRAM_PLAS.levels


def test_sizes_are_not_known_while_many_programs_are_larger_than_most_that_have_finished() -> None:
    """Of agents that began together the small ones end first, and for hours these are all that is known."""
    finished, live = {"agents": spread(0.1, 10.0, MIN_SAMPLES)}, {"agents": [20.0] * 40}
    choice = choice_of(decide(AUTO, sizes_of(finished, live), (), 5))
    assert (choice.alike, choice.chosen) == (False, Chosen.PROGRAM_PLAS)
    assert "sizes are not known yet" in choice.reason
    assert "of the programs are larger than nine tenths of those that have finished" in choice.reason
    # A single one that finished last does not show the sizes of the others.
    finished["agents"].append(21.0)
    assert not choice_of(decide(AUTO, sizes_of(finished, live), (), 5)).alike
    # What is known to be alike stays so unless the sizes spread.
    before = decide(AUTO, sizes_of(finished), (), 5).choices
    assert choice_of(decide(AUTO, sizes_of(finished, {"agents": [20.0] * 4}), before, 6)).alike


def test_between_the_bounds_a_choice_stays_what_it_is() -> None:
    """A spread between the bounds keeps either choice, and each changes beyond its own bound."""
    between = sizes_of({"react": spread(0.72)})
    cv2 = choice_of(decide(AUTO, between, (), 0)).cv2
    assert ALIKE < cv2 < SPREAD
    was_alike = decide(AUTO, sizes_of({"react": spread(0.3)}), (), 1).choices
    was_spread = decide(AUTO, sizes_of({"react": spread(2.0)}), (), 2).choices
    kept = decide(AUTO, between, was_alike, 9, FULL_CACHES)
    assert (choice_of(kept).chosen, choice_of(kept).since_us) == (Chosen.PROGRAM_FCFS, 1)
    kept = decide(AUTO, between, was_spread, 9, FULL_CACHES)
    assert (choice_of(kept).chosen, choice_of(kept).since_us) == (Chosen.PROGRAM_PLAS, 2)
    changed = decide(AUTO, sizes_of({"react": spread(2.0)}), was_alike, 9)
    assert (choice_of(changed).chosen, choice_of(changed).since_us) == (Chosen.PROGRAM_PLAS, 9)


def test_classes_that_differ_only_from_each_other_get_a_level_each_smaller_ones_first() -> None:
    decided = decide(AUTO, sizes_of({"lookup": spread(0.2, 1.0), "report": spread(0.2, 100.0)}), (), 5)
    ranks = {name: [level.rank for level in levels] for name, levels in decided.policy.classes}
    assert {name: len(each) for name, each in ranks.items()} == {"lookup": 1, "report": 1}
    assert (ranks["lookup"][0] or 0) < (ranks["report"][0] or 0)
    assert "alike within the class" in choice_of(decided, "lookup").reason
    # A class that nobody knows yet goes through levels that compare with these ranks.
    assert [level.rank for level in decided.policy.levels] == sorted(level.rank or 0 for level in decided.policy.levels)


def test_programs_of_unknown_classes_keep_the_levels_for_all_unless_they_are_few() -> None:
    finished = {"lookup": spread(0.2, 1.0), "report": spread(0.2, 100.0)}
    few, many = {"new": [1.0] * 10}, {"new": [1.0] * 200}
    assert chosen(decide(AUTO, sizes_of(finished, few), (), 5))[None] is Chosen.PROGRAM_FCFS
    assert chosen(decide(AUTO, sizes_of(finished, many), (), 5))[None] is Chosen.PROGRAM_PLAS


def test_a_choice_outlives_the_samples_that_it_was_made_from() -> None:
    before = decide(AUTO, sizes_of({"react": spread(0.3)}), (), 1).choices
    again = decide(AUTO, sizes_of({}, {"react": [1.0]}), before, 9)
    assert again.policy.levels == (Level(),)
    assert choice_of(again).since_us == 1


def test_the_number_of_judged_classes_is_bounded() -> None:
    finished = {f"class {number}": [1.0] * MIN_SAMPLES for number in range(MAX_CHOICES + 1)}
    assert len(decide(AUTO, sizes_of(finished), (), 5).choices) <= MAX_CHOICES + 1


@given(
    st.dictionaries(
        st.sampled_from("abc"),
        st.tuples(st.lists(st.integers(0, 10**10), max_size=40), st.lists(st.integers(0, 10**10), max_size=40)),
    ),
    st.builds(
        Contention.of,
        st.integers(0, 100),
        st.integers(0, 10),
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20))),
    ),
)
def test_every_decision_is_a_policy_that_engines_understand(
    drawn: dict[str, tuple[list[int], list[int]]], contention: Contention
) -> None:
    sizes = sizes_of({}, {})
    for class_name, (finished, live) in drawn.items():
        for size in finished:
            sizes.end(class_name, size)
        sizes.live[class_name] = live
    decided = decide(AUTO, sizes, (), 5, contention)
    assert from_dict(to_dict(decided.policy)) == decided.policy
    assert policy_from(policy_to(decided.policy)) == decided.policy
    # The same sizes and queues confirm the choice.
    assert decide(AUTO, sizes, decided.choices, 6, contention) == decided


def test_equal_sizes_are_alike() -> None:
    choice = choice_of(decide(AUTO, sizes_of({"react": [16.0] * MIN_SAMPLES}), (), 5))
    assert (choice.chosen, choice.cv2) == (Chosen.PROGRAM_FCFS, 0.0)
    assert "sizes are alike" in choice.reason


def test_a_class_whose_programs_are_gone_does_not_decide_for_others() -> None:
    before = decide(AUTO, sizes_of({"chat": spread(3.0)}), (), 1).choices
    finished = {"lookup": spread(0.2, 1.0), "report": spread(0.2, 100.0)}
    assert len(decide(AUTO, sizes_of(finished), before, 5).policy.classes) >= 2


async def run_programs(served: ServedPlane, engine: PlayedEngine, services: list[int], name: str) -> None:
    programs = [f"{name}-{number}" for number in range(len(services))]
    for program, service_us in zip(programs, services, strict=True):
        await served.programs.OpenProgram(program_service_pb2.OpenProgramRequest(program_id=program, name=name))
        call = await served.calls.AdmitCall(call_service_pb2.AdmitCallRequest(program_id=program))
        # One acknowledgement, of the last report, is for all: they come once a second.
        seq = engine_seq(engine) if program == programs[-1] else 0
        await engine.report(call, seq=seq, service_us=service_us, outcome=types_pb2.OUTCOME_COMPLETED)
    for program in programs:
        await served.programs.CloseProgram(program_service_pb2.CloseProgramRequest(program_id=program))


async def report_load(engine: PlayedEngine, load: types_pb2.EngineLoad) -> None:
    await engine.say(report=engine_service_pb2.Report(seq=engine_seq(engine), load=load))
    await engine.hear("ack")


def engine_seq(engine: PlayedEngine) -> int:
    used = _SEQUENCES.setdefault(id(engine), 0) + 1
    _SEQUENCES[id(engine)] = used
    return used


_SEQUENCES: dict[int, int] = {}


async def test_engines_switch_and_the_administrator_is_told_why() -> None:
    async with ServedPlane(policy="auto") as served:
        engine = PlayedEngine(served.engine_service)
        first = (await engine.hello()).policy
        assert (first.policy.name, first.policy.order) == ("auto", types_pb2.ORDER_CALL_ARRIVAL)
        await run_programs(served, engine, [16 * SECOND + number for number in range(MIN_SAMPLES)], "react")
        await report_load(engine, types_pb2.EngineLoad(waiting=9, running=1))
        await served.plane.tick()
        sent = (await engine.hear("policy")).directive.policy
        assert (sent.version, sent.policy.order) == (first.version, types_pb2.ORDER_PROGRAM_ARRIVAL)
        status = await served.admin.GetPolicy(admin_service_pb2.GetPolicyRequest())
        # What was set; the choices say what it comes to.
        assert (status.policy.version, status.policy.policy.name) == (first.version, "auto")
        assert len(status.policy.policy.levels) > 1
        assert [(each.application, each.chosen) for each in status.choices] == [
            ("react", "program-fcfs"), ("", "program-fcfs")
        ]  # fmt: skip
        assert [each.HasField("application") for each in status.choices] == [True, False]
        assert "sizes are alike" in status.choices[1].reason
        overview = await served.admin.GetOverview(admin_service_pb2.GetOverviewRequest())
        assert list(overview.policy_choices) == list(status.choices)
        assert b'agentserving_policy_classes{chosen="program-fcfs"} 2.0' in exposition(served.plane)
        assert "9 calls wait and 1 run" in status.choices[1].reason


async def test_engines_return_to_the_arrival_of_calls_when_their_queues_are_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upkeep, "RELEVEL_US", 0)
    async with ServedPlane(policy="auto") as served:
        engine = PlayedEngine(served.engine_service)
        await engine.hello()
        await run_programs(served, engine, [16 * SECOND] * MIN_SAMPLES, "react")
        await report_load(engine, types_pb2.EngineLoad(waiting=9, running=1))
        await served.plane.tick()
        assert (await engine.hear("policy")).directive.policy.policy.order == types_pb2.ORDER_PROGRAM_ARRIVAL
        await report_load(engine, types_pb2.EngineLoad(waiting=0, running=1))
        await served.plane.tick()
        assert (await engine.hear("policy")).directive.policy.policy.order == types_pb2.ORDER_CALL_ARRIVAL


async def test_a_restart_of_the_control_plane_keeps_the_choice() -> None:
    """Even when the rows of finished programs are gone."""
    async with ServedPlane(policy="auto", closed_retention_s=1e-6) as served:
        engine = PlayedEngine(served.engine_service)
        await engine.hello()
        await run_programs(served, engine, [16 * SECOND] * MIN_SAMPLES, "react")
        await served.plane.tick()
        assert not served.plane.table.rows
        before = await served.admin.GetPolicy(admin_service_pb2.GetPolicyRequest())
        await served.plane.commits.durable(served.plane.commits.number)
        await served.restart()
        welcome = await PlayedEngine(served.engine_service).hello("e2")
        assert len(welcome.policy.policy.levels) == 1
        after = await served.admin.GetPolicy(admin_service_pb2.GetPolicyRequest())
        assert [(each.chosen, each.since_time, each.cv2) for each in after.choices] == [
            (each.chosen, each.since_time, each.cv2) for each in before.choices
        ]


async def test_another_policy_forgets_the_choice() -> None:
    async with ServedPlane(policy="auto") as served:
        engine = PlayedEngine(served.engine_service)
        await engine.hello()
        await run_programs(served, engine, [16 * SECOND] * MIN_SAMPLES, "react")
        await served.plane.tick()
        await served.admin.ApplyPolicy(admin_service_pb2.ApplyPolicyRequest(policy=types_pb2.Policy(name="plas")))
        await served.plane.tick()
        status = await served.admin.GetPolicy(admin_service_pb2.GetPolicyRequest())
        assert (status.policy.policy.name, list(status.choices)) == ("plas", [])
