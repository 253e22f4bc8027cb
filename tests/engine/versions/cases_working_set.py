"""The working set on the real scheduler: whole programs are admitted while their contexts fit into the bounding tier.

That is the engine's KV, or host memory behind vLLM's OffloadingConnector if it is larger.
"""

from __future__ import annotations

from dataclasses import replace

from agentserving.contract.policy import PROGRAM_PLAS
from agentserving.contract.service_class import ServiceClass
from engine.versions.cases_preemption import churn
from engine.versions.rig import Engine, Options, Pipeline

BOUNDED = replace(PROGRAM_PLAS, retention_milli=0, working_set=True)
# 30 blocks, vLLM's null block included: a context of 20 and one of 15 do not fit together.
SMALL = Options(slots=4, blocks=30, budget=400)
HOST = replace(SMALL, host_blocks=100)


def two_programs(pipeline: Pipeline, options: Options, **second: object) -> tuple[Engine, str, str]:
    """One program runs on and on; another one with less service arrives."""
    engine = Engine(pipeline, options)
    engine.set_policy(BOUNDED)
    first = engine.send(program="a", prompt=300, max_tokens=20, attained_us=300_000, service=ServiceClass.BATCH)
    engine.run(until=lambda: first in engine.running())
    other = engine.send(program="b", prompt=240, max_tokens=4, **second)  # type: ignore[arg-type]
    engine.run(steps=4)
    return engine, first, other


def ends(engine: Engine) -> None:
    engine.finish()
    assert engine.session.load.hook_errors == 0
    engine.close()


def case_a_program_that_does_not_fit_waits_although_its_level_is_better(pipeline: Pipeline) -> None:
    engine, first, other = two_programs(pipeline, SMALL, service=ServiceClass.BATCH)
    assert (first in engine.running(), other in engine.running()) == (True, False)
    ends(engine)


def case_a_better_class_takes_the_place_and_the_slot(pipeline: Pipeline) -> None:
    engine, first, other = two_programs(pipeline, SMALL, service=ServiceClass.INTERACTIVE)
    assert first not in engine.running()
    assert other in engine.running() or engine.sent[other].finish_reason is not None
    ends(engine)


def case_behind_a_connector_host_memory_bounds(pipeline: Pipeline) -> None:
    """Both programs fit there: the better level takes the engine's KV, and the other one comes back."""
    engine, first, other = two_programs(pipeline, HOST, service=ServiceClass.BATCH)
    assert engine.session.calls.policy.working_set
    assert first not in engine.running()
    assert other in engine.running() or engine.sent[other].finish_reason is not None
    ends(engine)


def case_contexts_come_back_from_host_memory(pipeline: Pipeline) -> None:
    """Programs with contexts that have, together, three times the engine's blocks: each finds its own again."""
    engine = Engine(pipeline, HOST)
    engine.set_policy(BOUNDED)
    contexts: dict[str, list[int]] = {}
    for name in "abcabc":
        prompt = contexts.get(name) or [engine.rng.randint(0, 200) for _ in range(320)]
        key = engine.send(program=name, prompt_tokens=[*prompt, *[7] * 8], max_tokens=4)
        engine.run(until=lambda key=key: engine.sent[key].finish_reason is not None)  # type: ignore[misc]
        sent = engine.sent[key]
        contexts[name] = [*(sent.request.prompt_token_ids or ()), *sent.tokens]
    cached = [record.cached_tokens for record in engine.records().values()]
    assert sum(tokens >= 300 for tokens in cached) == 3, cached
    ends(engine)


def case_without_room_in_host_memory_programs_wait(pipeline: Pipeline) -> None:
    """Of 36 blocks 30 may be filled: the contexts of 18 and 15 whole blocks do not fit together."""
    engine, first, other = two_programs(pipeline, replace(HOST, host_blocks=36), service=ServiceClass.BATCH)
    assert (first in engine.running(), other in engine.running()) == (True, False)
    ends(engine)


def case_a_bounded_engine_loses_no_token_under_load(pipeline: Pipeline) -> None:
    for host_blocks in (0, 60):
        engine = Engine(pipeline, Options(slots=8, blocks=40, budget=64, host_blocks=host_blocks), seed=1)
        engine.set_policy(BOUNDED)
        churn(engine, requests=30)
        ends(engine)
