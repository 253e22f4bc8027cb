"""Endings become complete trees in order, skipped calls are counted, and every trace can be read and run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from agentserving.client.values import ClosedProgram, EndedCall, Outcome
from agentserving.contract.policy import ATLAS, to_dict
from agentserving.contract.service_class import SERVICE_CLASSES, ServiceClass
from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_replay.cluster import ClusterSpec, VirtualCluster
from agentserving_replay.traces.file import CallLine, ProgramLine, RecordingLine, encoded, read_trace
from agentserving_replay.traces.recording import Recorder
from agentserving_replay.traces.trace import Program
from agentserving_replay.traces.writer import TraceWriter, settle_systems
from agentserving_simulator.cost_model import cost_model
from hypothesis import given, settings
from hypothesis import strategies as st
from support.played_endings import closed, ended, origin, watched_endings

Lines = list[ProgramLine | CallLine]


def read(lines: Iterable[Lines]) -> list[Program]:
    _, programs = read_trace(encoded(line for part in lines for line in part).splitlines())
    return programs


def recorded(*endings: EndedCall | ClosedProgram) -> tuple[list[Program], Recorder]:
    recorder = Recorder()
    lines = list(recorder.take(watched_endings(*endings)))
    lines += recorder.rest()
    return (read(lines) if lines else []), recorder


def test_a_program_is_emitted_when_it_has_ended() -> None:
    recorder, p = Recorder(), origin("p", 1000, name="triage")
    first, second = ended(p, 0, 1500, 2500, prompt=300, output=50), ended(p, 1, 4500, 5000, prompt=500, output=20)
    assert list(recorder.take(watched_endings(first, second))) == []
    (lines,) = recorder.take(watched_endings(closed(p, 9000)))
    assert lines[0] == ProgramLine("p", 1.0, "triage")
    assert lines[1] == CallLine(program="p", call="c0", prompt_tokens=300, output_tokens=50, gap_s=0.5)
    assert lines[2] == CallLine(
        program="p", call="c1", prompt_tokens=500, output_tokens=20, after=["c0"], gap_s=2.0, extends="c0",
        shared_tokens=350,
    )  # fmt: skip
    assert (recorder.counts.programs, recorder.counts.calls, recorder.open_programs) == (1, 2, 0)


@pytest.mark.parametrize("kind", SERVICE_CLASSES)
def test_a_program_keeps_its_class_of_service(kind: ServiceClass) -> None:
    p = origin("p", service_class=kind)
    (program,), _ = recorded(ended(p, 0, 0, 100), closed(p, 300))
    assert program.service_class is kind


def test_a_call_made_before_its_parents_report_arrived_still_comes_after_it() -> None:
    p = origin("p")
    (program,), _ = recorded(ended(p, 0, 0, 100, heard_late=20), ended(p, 1, 101, 200), closed(p, 300))
    assert program.calls[1].parents == (0,)
    assert program.calls[1].gap_s == pytest.approx(0.001)


def test_a_closed_program_waits_for_its_calls_in_flight() -> None:
    recorder, p = Recorder(), origin("p")
    assert list(recorder.take(watched_endings(closed(p, 50, in_flight=2), ended(p, 0, 0, 60)))) == []
    (lines,) = recorder.take(watched_endings(ended(p, 1, 0, 70)))
    assert len(lines) == 3


def test_a_tree_is_emitted_when_all_its_sub_agents_have_ended() -> None:
    root, sub = origin("r"), origin("r.s", 150, "r", root_opened=0)
    recorder = Recorder()
    assert list(recorder.take(watched_endings(ended(root, 0, 0, 100), closed(root, 100)))) != []
    recorder = Recorder()
    parts = [ended(root, 0, 0, 100), ended(sub, 0, 200, 300, thread="x"), closed(root, 300)]
    assert list(recorder.take(watched_endings(*parts))) == []
    (lines,) = recorder.take(watched_endings(ended(sub, 1, 310, 350, thread="x"), closed(sub, 400)))
    (program,) = read([lines])
    assert [line.parent for line in lines if isinstance(line, ProgramLine)] == ["", "r"]
    assert [call.parents for call in program.calls] == [(), (0,), (1,)]
    assert [call.thread for call in program.calls] == ["", "r.s/x", "r.s/x"]


def test_trees_that_began_before_the_recording_are_skipped_and_counted() -> None:
    old, child = origin("old", -1), origin("old.child", 5, "old", root_opened=-1)
    programs, recorder = recorded(ended(old, 7, 10, 20), closed(old, 30), ended(child, 0, 10, 20), closed(child, 40))
    assert programs == []
    assert (recorder.counts.began_before, recorder.counts.calls_before, recorder.counts.programs) == (1, 2, 0)


def test_open_programs_are_emitted_or_skipped_at_the_end() -> None:
    p = origin("p")
    programs, recorder = recorded(ended(p, 0, 0, 10))
    assert (len(programs), recorder.counts.still_open, recorder.counts.programs) == (1, 1, 1)
    recorder = Recorder()
    assert list(recorder.take(watched_endings(ended(p, 0, 0, 10)))) == []
    recorder.drop_rest()
    assert (list(recorder.rest()), recorder.counts.still_open, recorder.counts.programs) == ([], 1, 0)


def test_a_reopened_id_becomes_another_program_of_the_trace() -> None:
    p = origin("p")
    programs, recorder = recorded(
        ended(p, 0, 0, 10), closed(p, 20), ended(p, 1, 30, 40), closed(p, 50), ended(p, 2, 60, 70), closed(p, 80)
    )
    assert [program.program_id for program in programs] == ["p", "p@2", "p@3"]
    assert recorder.counts.reopened == 2


def test_calls_without_tokens_are_skipped_and_an_embedding_is_one_step() -> None:
    p = origin("p")
    (program,), recorder = recorded(
        ended(p, 0, 0, 10),
        ended(p, 1, 20, 30, output=0, outcome=Outcome.CANCELLED, parents=("p.1.0",)),
        ended(p, 2, 20, 30, prompt=0),
        ended(p, 3, 40, 50, output=0, parents=("p.1.1",)),
        closed(p, 60),
    )
    assert recorder.counts.calls_without_tokens == 2
    assert [(call.output_tokens, call.parents) for call in program.calls] == [(10, ()), (1, (0,))]


def test_losses_and_restarts_are_counted() -> None:
    recorder = Recorder()
    list(recorder.take(watched_endings(lost=3)))
    list(recorder.take(watched_endings(lost=2, restarted=True)))
    assert (recorder.counts.lost, recorder.counts.restarts) == (5, 1)


def head(**fields: object) -> RecordingLine:
    fields_of_line = {"recording": "2026-11-24T09:00:00Z", "policy": to_dict(ATLAS), "balancer": Balancer.LEAST_USED}
    return RecordingLine(**{**fields_of_line, "engines": 2, "max_num_seqs": 16, **fields})  # type: ignore[arg-type]


def test_a_recording_names_its_cluster_and_classes_share_system_prompts(tmp_path: Path) -> None:
    recorder, path = Recorder(), tmp_path / "t.jsonl"
    endings: list[EndedCall | ClosedProgram] = []
    for number, (name, found) in enumerate([("a", 0), ("a", 512), ("a", 512), ("", 0), ("", 64), ("b", 0)]):
        p = origin(f"p{number}", number, name=name)
        endings += [ended(p, 0, 10, 20, prompt=600, cached=found), closed(p, 30)]
    with TraceWriter(path, head()) as file:
        for lines in recorder.take(watched_endings(*endings)):
            file.write(lines)
    with pytest.raises(FileExistsError):
        TraceWriter(path, head())
    settle_systems(path)
    cluster, programs = read_trace(path.read_bytes().splitlines())
    assert cluster is not None
    assert (cluster.policy, cluster.balancer, cluster.engines, cluster.max_num_seqs) == (
        ATLAS,
        Balancer.LEAST_USED,
        2,
        16,
    )
    assert [p.calls[0].shared_tokens for p in programs] == [512, 512, 512, 0, 64, 0]
    assert list(tmp_path.iterdir()) == [path]


CALL = st.tuples(
    st.sampled_from(["r", "r.s", "r.s.t", "q"]), st.integers(0, 50), st.integers(0, 20), st.integers(0, 900),
    st.integers(0, 80), st.integers(0, 1000), st.sampled_from(["", "x", "y"]), st.sampled_from([1, 2, 3]),
    st.sets(st.integers(0, 9), max_size=3),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(CALL, max_size=14), st.booleans(), st.randoms(use_true_random=False))
def test_endings_in_any_order_make_a_trace_that_can_be_run(
    drawn: list[tuple[str, int, int, int, int, int, str, int, set[int]]], close: bool, rng: object
) -> None:
    above = {"r": "", "r.s": "r", "r.s.t": "r.s", "q": ""}
    endings: list[EndedCall | ClosedProgram] = []
    for number, (program, began, length, prompt, output, cached, thread, outcome, parents) in enumerate(drawn):
        of = origin(program, 0, above[program], "q" if program == "q" else "r")
        names = tuple(f"{program}.1.{parent}" for parent in sorted(parents))
        endings.append(
            ended(
                of, number, began, began + length, prompt=prompt, output=output, cached=cached, thread=thread,
                parents=names, outcome=Outcome(outcome),
            )
        )  # fmt: skip
    if close:
        endings += [closed(origin(p, 0, above[p], "q" if p == "q" else "r"), 100) for p in above]
    rng.shuffle(endings)  # type: ignore[attr-defined]
    recorder = Recorder()
    lines = [part for each in endings for part in recorder.take(watched_endings(each))]
    lines += recorder.rest()
    counts = recorder.counts
    assert counts.calls + counts.calls_without_tokens == len(drawn)
    if not lines:
        return
    programs = read(lines)
    assert sum(len(program.calls) for program in programs) == counts.calls
    cluster = VirtualCluster(ClusterSpec(policy=ATLAS, cost=cost_model("a100-80gb", "llama-3.1-8b")))
    cluster.add(programs)
    assert sum(result.calls for result in cluster.run()) == counts.calls
