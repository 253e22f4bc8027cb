"""Waiting requests that cannot start yet: their grammar is being compiled, or their adapter has no slot."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

from agentserving.contract.policy import PLAS
from engine.versions.fake_runner import next_token
from engine.versions.rig import Engine, Options, Pipeline
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

LOW = 10**9
TEXT = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz"
WITH_GRAMMAR = Options(slots=2, tokenizer=True)


@functools.cache
def letters() -> dict[str, int]:
    """Token ids of the tiny model's letters."""
    tokenizer = json.loads((Path(os.environ["AGENTSERVING_TEST_MODEL"]) / "tokenizer.json").read_text())
    return {letter: tokenizer["model"]["vocab"][letter] for letter in sorted(set(TEXT))}


def spell(request_id: str, position: int) -> int:
    """Calls of program `g` write TEXT, as their grammar demands; their prompt has 20 tokens."""
    if "-g." not in request_id:
        return next_token(request_id, position)
    return letters()[TEXT[position - 20]]


def grammar(max_tokens: int) -> SamplingParams:
    """Nothing but TEXT, so that a grammar that is one token out of step with the output forbids the next one."""
    wanted = StructuredOutputsParams(regex=TEXT)
    wanted._backend = "xgrammar"
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True, structured_outputs=wanted)


def case_a_grammar_stays_in_step_through_preemptions(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, WITH_GRAMMAR, seed=5, choose=spell)
    for _ in range(3):
        engine.send(program="g", max_tokens=40, sampling_params=grammar(40))
        engine.send(program="p", max_tokens=40)
    while engine.unfinished():
        if engine.rng.random() < 0.3 and engine.running():
            engine.preempt(engine.rng.choice(engine.running()))
        engine.step()
    engine.finish()
    assert engine.session.load.preemptions_proactive > 5
    engine.close()


def case_a_head_whose_grammar_compiles_blocks_and_preempts_no_other(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, WITH_GRAMMAR, choose=spell)
    engine.set_policy(PLAS)
    hogs = [engine.send(program=f"hog{i}", max_tokens=60, attained_us=LOW) for i in range(2)]
    engine.run(steps=3)
    blocked = engine.send(program="g", max_tokens=10, sampling_params=grammar(10), compiled=False)
    engine.run(steps=10)
    assert engine.session.load.preemptions_proactive == 0, "preempted for a call that could not start"
    other = engine.send(program="other", max_tokens=3)
    engine.run(until=lambda: engine.sent[other].finish_reason is not None)
    assert engine.sent[blocked].tokens == []
    engine.compile(blocked)
    engine.run(until=lambda: engine.sent[blocked].finish_reason is not None)
    assert all(engine.sent[hog].finish_reason is None for hog in hogs)
    engine.finish()
    engine.close()


def case_a_request_that_was_passed_over_keeps_its_rank(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=1, tokenizer=True), choose=spell)
    engine.set_policy(PLAS)
    first = engine.send(program="first", max_tokens=30)
    passed_over = engine.send(program="g", max_tokens=10, sampling_params=grammar(10), compiled=False, attained_us=LOW)
    engine.run(steps=3)
    better = [engine.send(program=f"better{i}", max_tokens=10) for i in range(3)]
    engine.compile(passed_over)
    engine.run(until=lambda: engine.sent[passed_over].tokens)
    assert all(engine.sent[key].finish_reason is not None for key in (first, *better)), "it jumped the queue"
    engine.finish()
    engine.close()


def case_a_paused_call_does_not_start_when_its_grammar_is_ready(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, WITH_GRAMMAR, choose=spell)
    engine.send(program="other", max_tokens=40)
    blocked = engine.send(program="g", max_tokens=10, sampling_params=grammar(10), compiled=False)
    engine.run(steps=3)
    engine.pause("g", True)
    engine.run(steps=2)
    engine.compile(blocked)
    for _ in range(20):
        engine.step()
        assert blocked not in engine.running(), "a paused call runs"
    engine.pause("g", False)
    engine.finish()
    engine.close()


def case_a_grammar_that_does_not_compile_ends_its_call_as_failed(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, WITH_GRAMMAR, choose=spell)
    broken = grammar(10)
    broken.structured_outputs.regex = "(unclosed"
    key = engine.send(program="g", sampling_params=broken, max_tokens=10)
    good = engine.send(program="p", max_tokens=20)
    engine.run()
    assert engine.sent[key].tokens == []
    assert engine.sent[key].finish_reason is not None, "the client hangs"
    assert engine.sent[good].tokens == engine.expected(good)
    assert engine.records()["g.1.0"].outcome == "failed"
    engine.close()


def adapter(number: int) -> LoRARequest:
    return LoRARequest(f"adapter{number}", number, "nowhere")


def case_no_call_is_preempted_for_an_adapter_without_a_slot(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=2, lora_slots=1))
    engine.set_policy(PLAS)
    hogs = [engine.send(program=f"hog{i}", max_tokens=30, attained_us=LOW, lora_request=adapter(1)) for i in range(2)]
    engine.run(steps=3)
    other = engine.send(program="other", max_tokens=5, lora_request=adapter(2))
    engine.run(steps=10)
    assert engine.session.load.preemptions_proactive == 0
    same = engine.send(program="same", max_tokens=3, lora_request=adapter(1))
    engine.run(until=lambda: engine.sent[same].finish_reason is not None)
    assert all(engine.sent[hog].finish_reason is None for hog in hogs), "the head without a slot blocks the others"
    engine.finish()
    assert engine.sent[other].finish_reason is not None
    engine.close()


def case_adapters_come_through_preemptions(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=4, blocks=40, budget=64, lora_slots=2), seed=11)
    engine.set_policy(PLAS)
    left = 24
    while left or engine.unfinished():
        if left and engine.rng.random() < 0.3:
            left -= 1
            which = engine.rng.randint(0, 4)
            engine.send(
                program=f"p{left % 5}", prompt=engine.rng.randint(1, 90), max_tokens=engine.rng.randint(1, 40),
                attained_us=engine.rng.choice([0, LOW]), lora_request=adapter(which) if which else None,
            )  # fmt: skip
        if engine.rng.random() < 0.2 and engine.running():
            engine.preempt(engine.rng.choice(engine.running()))
        engine.step()
    engine.finish()
    engine.close()
