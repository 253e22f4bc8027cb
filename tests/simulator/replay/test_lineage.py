"""The order of calls is inferred from when they began and ended: chains, waves, joins, sub-agents."""

from __future__ import annotations

from agentserving.contract.ids import CallId, EngineId, ProgramId
from agentserving_replay.traces.lineage import Lineage, RecordedCall
from hypothesis import given, settings
from hypothesis import strategies as st


def ran(
    name: str, admit: int, end: int, thread: str = "", program: str = "p", parents: tuple[str, ...] = ()
) -> RecordedCall:
    return RecordedCall(
        call_id=CallId(name), program_id=ProgramId(program), thread_id=thread, engine_id=EngineId("e1"),
        parents=parents, admit_us=admit, end_us=end, prompt_tokens=100, cached_tokens=0, output_tokens=10,
    )  # fmt: skip


def parents(
    *calls: RecordedCall, above: dict[str, str] | None = None, stand_ins: dict[str, list[str]] | None = None
) -> list[list[str]]:
    callers = {ProgramId(below): ProgramId(caller) for below, caller in (above or {}).items()}
    lineage = Lineage(calls, callers, stand_ins or {})
    return [[calls[index].call_id for index in lineage.parents(at)] for at in range(len(calls))]


def test_a_chain_is_a_chain() -> None:
    assert parents(ran("a", 0, 10), ran("b", 12, 20), ran("c", 20, 30)) == [[], ["a"], ["b"]]


def test_the_call_after_a_wave_waits_for_all_of_it() -> None:
    wave = (ran("m1", 0, 10, "1"), ran("m2", 0, 30, "2"), ran("m3", 1, 20, "3"))
    assert parents(*wave, ran("reduce", 31, 40)) == [[], [], [], ["m1", "m2", "m3"]]


def test_threads_do_not_wait_for_each_other() -> None:
    calls = (ran("a1", 0, 10, "a"), ran("b1", 0, 12, "b"), ran("a2", 15, 20, "a"), ran("b2", 16, 20, "b"))
    assert parents(*calls) == [[], [], ["a1"], ["b1"]]


def test_declared_parents_are_believed() -> None:
    calls = (ran("a", 0, 10), ran("b", 0, 11, "t"), ran("c", 20, 30, parents=("b",)))
    assert parents(*calls)[2] == ["b"]


def test_a_parent_without_tokens_is_replaced_by_its_own_parents() -> None:
    calls = (ran("a", 0, 10), ran("b", 5, 12, "t"), ran("c", 20, 30, parents=("nothing",)))
    assert parents(*calls, stand_ins={"nothing": ["retried"], "retried": ["a"]})[2] == ["a"]
    assert parents(*calls, stand_ins={"nothing": ["nothing"]})[2] == ["a"]


def test_a_sub_agent_begins_after_its_caller_which_waits_for_it_once() -> None:
    calls = (
        ran("r1", 0, 10), ran("s1", 12, 20, program="sub"), ran("s2", 21, 30, program="sub"), ran("r2", 35, 40),
        ran("r3", 41, 50),
    )  # fmt: skip
    assert parents(*calls, above={"sub": "p"}) == [[], ["r1"], ["s1"], ["r1", "s2"], ["r2"]]


def test_a_cycle_of_callers_terminates() -> None:
    assert parents(ran("a", 0, 10, program="x"), above={"x": "y", "y": "x"}) == [[]]


CALLS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 10), st.sampled_from("abc"), st.sampled_from(["p", "sub"])),
    max_size=20,
)


@settings(deadline=None)
@given(CALLS)
def test_every_edge_is_an_end_before_a_start_and_none_is_implied_by_another(
    drawn: list[tuple[int, int, str, str]],
) -> None:
    drawn.sort(key=lambda call: call[0])
    calls = [ran(f"c{i}", admit, admit + length, t, p) for i, (admit, length, t, p) in enumerate(drawn)]
    lineage = Lineage(calls, {ProgramId("sub"): ProgramId("p")}, {})
    for at, call in enumerate(calls):
        parents_of = lineage.parents(at)
        assert parents_of == sorted(set(parents_of))
        assert all(index < at and calls[index].end_us <= call.admit_us for index in parents_of)
        for one in lineage.before(at):
            later = [i for i in lineage.before(at) if calls[i].admit_us >= calls[one].end_us]
            assert not later
        ended = [i for i in range(at) if calls[i].program_id == call.program_id and calls[i].end_us <= call.admit_us]
        assert bool(ended) <= bool(lineage.before(at))
