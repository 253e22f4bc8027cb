"""Models of several groups of layers (full attention beside a sliding window) in one pool of blocks."""

from __future__ import annotations

from agentserving.contract.policy import PLAS
from engine.versions.cases_preemption import SEEDS, churn, churned
from engine.versions.rig import Engine, Options, Pipeline

# The layers of the second group look 64 tokens back, so blocks leave their table while a call goes on.
WINDOWED = Options(slots=4, blocks=400, budget=64, windows=(0, 64))


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


def case_a_context_of_several_groups_is_found_again_and_not_retained(pipeline: Pipeline) -> None:
    """What is retained is counted by one hash for each block, which several groups do not have."""
    engine = Engine(pipeline, WINDOWED)
    engine.set_policy(PLAS)
    prompt = [engine.rng.randint(0, 200) for _ in range(160)]
    engine.send(program="p", prompt_tokens=prompt, max_tokens=4)
    engine.finish()
    engine.tool_wait("p", True, expected_us=1_000_000)
    engine.send(program="other", prompt=40, max_tokens=4)
    engine.finish()
    engine.send(program="p", prompt_tokens=prompt, max_tokens=4)
    engine.finish()
    assert engine.session.load.cached_tokens >= 128
    assert engine.session.load.kept_blocks == 0
    engine.close()
