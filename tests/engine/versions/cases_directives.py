"""Pauses, cancellations, tenants, and calls of several requests."""

from __future__ import annotations

from agentserving.contract.policy import ATLAS, PLAS
from engine.versions.rig import Engine, Options, Pipeline, wait_until
from vllm.v1.engine import FinishReason


def case_a_paused_program_does_not_run_and_resumes_where_it_stopped(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=3))
    engine.set_policy(PLAS)
    paused = [engine.send(program="paused", max_tokens=30) for _ in range(2)]
    free = [engine.send(program="free", max_tokens=20) for _ in range(3)]
    engine.run(steps=6)
    engine.pause("paused", True)
    engine.step()
    late = engine.send(program="paused", max_tokens=5)
    for _ in range(40):
        assert not {*paused, late} & set(engine.running()), "a paused call runs"
        engine.step()
    assert all(engine.sent[key].finish_reason is not None for key in free), "others wait for a paused program"
    assert all(engine.sent[key].finish_reason is None for key in paused)
    engine.pause("paused", False)
    engine.finish()
    assert engine.sent[late].finish_reason is not None
    engine.close()


def case_a_cancelled_call_answers_its_client(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=2))
    running, other = (engine.send(program=name, max_tokens=40) for name in ("a", "b"))
    waiting = engine.send(program="c", max_tokens=40)
    engine.send(program="d", max_tokens=5)
    engine.run(steps=5)
    engine.cancel(running, waiting)
    engine.run(steps=3)
    for key in (running, waiting):
        assert engine.sent[key].finish_reason == FinishReason.ABORT, "the client hangs"
    assert engine.sent[running].tokens
    assert engine.sent[other].finish_reason is None
    engine.finish()
    assert {call: record.outcome for call, record in engine.records().items()} == {
        "a.1.0": "cancelled", "b.1.1": "completed", "c.1.2": "cancelled", "d.1.3": "completed"
    }  # fmt: skip
    engine.close()


def case_cancelling_the_last_call_answers_its_client_too(pipeline: Pipeline) -> None:
    for steps in range(1, 6):
        engine = Engine(pipeline)
        key = engine.send(program="p", max_tokens=40)
        engine.run(steps=steps)
        if steps % 2:
            engine.pause("p", True)
            engine.step()
        engine.cancel(key)
        engine.finish()
        assert engine.sent[key].finish_reason == FinishReason.ABORT
        engine.close()


def case_siblings_of_one_request_are_one_call(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=4, budget=64), seed=3)
    engine.set_policy(ATLAS)
    prompt = [engine.rng.randint(0, 200) for _ in range(70)]
    siblings = [
        engine.send(
            program="p", call="p.1.0", request_id=f"{at}_chatcmpl-p.1.0-0123abcd", prompt_tokens=prompt,
            max_tokens=10 + at,
        )
        for at in range(3)
    ]  # fmt: skip
    engine.send(program="q", max_tokens=25)
    for _ in range(8):
        engine.run(steps=3)
        engine.preempt(engine.rng.choice(siblings))
    engine.finish()
    record = engine.records()["p.1.0"]
    assert record.outcome == "completed"
    assert record.output_tokens == 10 + 11 + 12
    assert set(engine.records()) == {"p.1.0", "q.1.3"}
    assert engine.steps * 10_000 < record.service_us <= 3 * engine.steps * 10_000, "each of them is charged"
    assert engine.session.book.unmanaged_calls == 0
    engine.close()


def case_a_beam_search_is_one_call_of_its_program(pipeline: Pipeline) -> None:
    """vLLM's front end makes new requests for every token, when those before have ended."""
    engine = Engine(pipeline, Options(slots=4), seed=4)
    engine.set_policy(PLAS)
    engine.send(program="q", max_tokens=200)
    for token in range(12):
        beams = [
            engine.send(
                program="p", call="p.1.0", request_id=f"chatcmpl-p.1.0-{token:032x}-beam-{at}-{at:08x}",
                prompt=20 + token, max_tokens=1,
            )
            for at in range(3 if token else 1)
        ]  # fmt: skip
        engine.run(until=lambda beams=beams: all(engine.sent[key].finish_reason is not None for key in beams))  # type: ignore[misc]
    assert engine.session.book.unmanaged_calls == 0
    assert engine.session.book.rejections.total == 0
    engine.finish()
    engine.clock.ns += 10**9
    wait_until(lambda: "p.1.0" in engine.records())
    record = engine.records()["p.1.0"]
    assert record.outcome == "completed"
    assert record.output_tokens == 1 + 11 * 3
    assert set(engine.records()) == {"p.1.0", "q.1.0"}
    engine.close()


def case_two_tenants_programs_of_one_id_pause_apart(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=4))
    engine.set_policy(PLAS)
    ours = engine.send(program="triage", max_tokens=30)
    theirs = engine.send(program="triage", call="other.1.0", tenant="other", max_tokens=30)
    engine.run(steps=3)
    engine.pause("triage", True)
    engine.run(until=lambda: engine.sent[theirs].finish_reason is not None)
    assert engine.sent[ours].finish_reason is None
    engine.pause("triage", False)
    engine.finish()
    engine.close()
