"""KV retained during a tool wait: in vLLM's free queue, against worse programs, for a time."""

from __future__ import annotations

from dataclasses import replace

from agentserving.contract.policy import FCFS, PROGRAM_PLAS
from engine.versions.cases_preemption import churn
from engine.versions.rig import Engine, Options, Pipeline

# Beyond what the test's first program has.
WORSE = 10**9
RETAINING = replace(PROGRAM_PLAS, retention_milli=50_000)
# 30 blocks, vLLM's null block included: a context of 20 and one of 15 do not fit together.
SMALL = Options(slots=4, blocks=30, budget=400)


def after_a_call_of_a(engine: Engine, tokens: int = 320) -> list[int]:
    """Program `a` has a call of so many tokens; returns its prompt and answer."""
    first = engine.send(program="a", prompt=tokens - 4, max_tokens=4, attained_us=300_000)
    engine.run(until=lambda: engine.sent[first].finish_reason is not None)
    sent = engine.sent[first]
    return [*(sent.request.prompt_token_ids or ()), *sent.tokens]


def case_a_worse_program_waits_while_kv_is_retained(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, SMALL)
    engine.set_policy(RETAINING)
    context = after_a_call_of_a(engine)
    other = engine.send(program="b", prompt=240, max_tokens=4, attained_us=WORSE)
    engine.run(steps=8)
    assert other not in engine.running(), "it took the retained blocks"
    again = engine.send(program="a", prompt_tokens=[*context, *[7] * 8], max_tokens=4, attained_us=300_000)
    engine.run(until=lambda: engine.sent[again].finish_reason is not None)
    assert engine.records()["a.1.2"].cached_tokens >= 300, "its context was evicted"
    engine.finish()
    assert engine.session.load.hook_errors == 0
    engine.close()


def case_kv_is_retained_for_a_time_only(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, SMALL)
    engine.set_policy(RETAINING)
    after_a_call_of_a(engine)
    other = engine.send(program="b", prompt=240, max_tokens=4, attained_us=WORSE)
    engine.run(steps=8)
    assert other not in engine.running()
    # The program does not return, and nothing else runs: the engine must not wait for ever.
    engine.finish()
    engine.close()


def case_a_better_program_does_not_wait_for_retained_kv(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, SMALL)
    engine.set_policy(RETAINING)
    after_a_call_of_a(engine)
    better = engine.send(program="b", prompt=240, max_tokens=20)
    engine.run(steps=3)
    assert better in engine.running()
    engine.finish()
    engine.close()


def case_nothing_is_retained_by_a_policy_without_retention(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, SMALL)
    engine.set_policy(replace(PROGRAM_PLAS, retention_milli=0))
    after_a_call_of_a(engine)
    other = engine.send(program="b", prompt=240, max_tokens=20, attained_us=WORSE)
    engine.run(steps=3)
    assert other in engine.running()
    engine.finish()
    engine.close()


def case_retained_blocks_are_evicted_last(pipeline: Pipeline) -> None:
    # The passing calls take 90 of 60 blocks: without a refresh they would reach the 20 retained ones.
    engine = Engine(pipeline, replace(SMALL, blocks=60))
    engine.set_policy(RETAINING)
    context = after_a_call_of_a(engine)
    for _ in range(6):
        # Each takes 15 other blocks; being the best calls, they are not deferred, and being unmanaged, not retained.
        passing = engine.send(prompt=230, max_tokens=4)
        engine.run(until=lambda key=passing: engine.sent[key].finish_reason is not None)  # type: ignore[misc]
    again = engine.send(program="a", prompt_tokens=[*context, *[7] * 8], max_tokens=4, attained_us=300_000)
    engine.run(until=lambda: engine.sent[again].finish_reason is not None)
    assert engine.records()["a.1.7"].cached_tokens >= 300, "its context was evicted"
    engine.finish()
    engine.close()


def case_retention_loses_no_token_under_load(pipeline: Pipeline) -> None:
    for seed in (1, 2, 3):
        engine = Engine(pipeline, Options(slots=8, blocks=40, budget=64), seed=seed)
        engine.set_policy(RETAINING)
        churn(engine, requests=30)
        engine.set_policy(FCFS, version=2)
        churn(engine, requests=10)
        engine.finish()
        assert engine.session.load.hook_errors == 0
        engine.close()


def case_a_long_tool_wait_gives_retained_kv_to_others(pipeline: Pipeline) -> None:
    for expected_us, starts in ((0, False), (600_000_000, True)):
        engine = Engine(pipeline, SMALL)
        engine.set_policy(RETAINING)
        after_a_call_of_a(engine)
        engine.tool_wait("a", True, expected_us=expected_us)
        other = engine.send(program="b", prompt=240, max_tokens=4, attained_us=WORSE)
        engine.run(steps=3)
        assert (other in engine.running() or engine.sent[other].finish_reason is not None) == starts
        engine.finish()
        engine.close()
