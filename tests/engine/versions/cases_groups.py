"""Models of several groups of layers (full attention beside a sliding window) in one pool of blocks."""

from __future__ import annotations

from dataclasses import replace

from agentserving.contract.policy import PLAS
from engine.versions.cases_preemption import SEEDS, churn, churned
from engine.versions.cases_retention import RETAINING, WORSE, after_a_call_of_a
from engine.versions.fake_runner import BLOCK_SIZE
from engine.versions.rig import Engine, Options, Pipeline

# The layers of the second group look 64 tokens back, so blocks leave their table while a call goes on.
WINDOWED = Options(slots=4, blocks=400, budget=64, windows=(0, 64))
# A context of 320 tokens has 20 blocks for full attention, and of two groups with windows the newest four each.
SMALL = Options(slots=4, blocks=48, budget=64, windows=(0, 64, 64))


def case_preempted_calls_of_windowed_layers_lose_no_token(pipeline: Pipeline) -> None:
    for seed in SEEDS:
        engine = Engine(pipeline, WINDOWED, seed=seed)
        churn(engine, aborts=0)
        engine.finish()
        assert engine.session.load.preemptions_proactive > 30, "the case forces hardly any preemption"
        engine.close()


def case_windowed_layers_under_kv_pressure(pipeline: Pipeline) -> None:
    loads = churned(pipeline, Options(slots=8, blocks=50, budget=64, windows=(0, 64)), PLAS)
    assert sum(load.preemptions_reactive for load in loads) > 0, "the case never ran out of blocks"


def case_a_context_of_several_groups_is_retained(pipeline: Pipeline) -> None:
    """A worse program waits, and the context is found again; without retention it is lost."""
    found = {}
    for policy in (RETAINING, replace(RETAINING, retention_milli=0)):
        engine = Engine(pipeline, SMALL)
        engine.set_policy(policy)
        context = after_a_call_of_a(engine)
        other = engine.send(program="b", prompt=320, max_tokens=4, attained_us=WORSE)
        engine.run(steps=4)
        assert (other in engine.running()) == (not policy.retention_milli)
        again = engine.send(program="a", prompt_tokens=[*context, *[7] * 8], max_tokens=4, attained_us=300_000)
        engine.run(until=lambda engine=engine, again=again: engine.sent[again].finish_reason is not None)
        found[policy.retention_milli] = engine.records()["a.1.2"].cached_tokens
        engine.finish()
        assert engine.session.load.hook_errors == 0
        engine.close()
    assert found[RETAINING.retention_milli] >= 300 > found[0]


def case_what_is_found_of_several_groups_is_what_vllm_finds(pipeline: Pipeline) -> None:
    """For every waiting call of a churning engine: the same hit, or a shorter one far before the end."""
    compared = hits = 0
    for seed in SEEDS:
        engine = Engine(pipeline, Options(slots=2, blocks=60, budget=64, windows=(0, 64, 64)), seed=seed)
        engine.set_policy(RETAINING)
        contexts: dict[int, list[int]] = {}
        for number in range(40):
            program = engine.rng.randrange(4)
            prompt = [*contexts.get(program, []), *[engine.rng.randint(0, 200) for _ in range(30)]][-600:]
            sent = engine.send(program=f"p{program}", prompt_tokens=prompt, max_tokens=4)
            for key, request in engine.scheduler.requests.items():
                if key == sent:
                    ours, idle = engine.scheduler._adapter.cached_blocks(key)
                    theirs = engine.scheduler.kv_cache_manager.get_computed_blocks(request)[1]
                    units = theirs // BLOCK_SIZE
                    assert ours in (0, engine.scheduler._adapter.kv.layout.held(units))
                    assert 0 <= idle <= ours
                    compared, hits = compared + 1, hits + bool(ours)
            if number % 2:
                engine.run(until=lambda engine=engine, sent=sent: engine.sent[sent].finish_reason is not None)
            contexts[program] = [*prompt, *engine.sent[sent].tokens]
        engine.finish()
        engine.close()
    assert hits > compared / 10, (hits, compared)
