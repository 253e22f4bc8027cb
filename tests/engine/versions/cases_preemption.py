"""Preemptions of every cause, under load: each token of each request arrives once and in order."""

from __future__ import annotations

from agentserving.contract.channel import Load
from agentserving.contract.policy import ATLAS, FCFS, MLFQ, PLAS, PROGRAM_FCFS, Policy
from engine.versions.rig import Engine, Options, Pipeline

SEEDS = (1, 2, 3)
LOW = 10**9  # microseconds that put a program into the last level


def churn(engine: Engine, *, requests: int = 40, forced: float = 0.3, aborts: float = 0.02) -> None:
    """Random arrivals, forced preemptions and aborts until all requests are through."""
    rng, left = engine.rng, requests
    shared = [rng.randint(0, 200) for _ in range(48)]
    while left or engine.unfinished():
        if left and rng.random() < 0.3:
            left -= 1
            tail = [rng.randint(0, 200) for _ in range(rng.randint(1, 120))]
            engine.send(
                prompt_tokens=(shared if rng.random() < 0.5 else []) + tail,
                max_tokens=rng.randint(1, 60),
                program=f"p{rng.randint(0, 7)}" if rng.random() < 0.8 else None,
                attained_us=rng.choice([0, 0, 300_000, 2_000_000, 10**9]),
            )
        if rng.random() < forced:
            for key in rng.sample(engine.running(), rng.randint(0, len(engine.running()))):
                engine.preempt(key)
        if rng.random() < aborts and engine.unfinished():
            engine.abort(rng.choice(engine.unfinished()))
        engine.step()


def churned(pipeline: Pipeline, options: Options, policy: Policy) -> list[Load]:
    """Loads of engines after the churn, one for each seed; none has lost a token."""
    loads = []
    for seed in SEEDS:
        engine = Engine(pipeline, options, seed=seed)
        engine.set_policy(policy)
        churn(engine)
        engine.finish()
        loads.append(engine.session.load)
        engine.close()
    return loads


def case_forced_preemptions_lose_no_token(pipeline: Pipeline) -> None:
    for seed in SEEDS:
        engine = Engine(pipeline, Options(budget=64), seed=seed)
        churn(engine, aborts=0)
        engine.finish()
        assert engine.session.load.preemptions_proactive > 30, "the case forces hardly any preemption"
        assert engine.runner.most_at_once == engine.options.slots
        engine.close()


def case_preemptions_and_aborts_under_kv_pressure(pipeline: Pipeline) -> None:
    loads = churned(pipeline, Options(slots=8, blocks=26, budget=64), PLAS)
    assert sum(load.preemptions_reactive for load in loads) > 0, "the case never ran out of blocks"


def case_preemptions_without_prefix_caching(pipeline: Pipeline) -> None:
    churned(pipeline, Options(slots=8, blocks=40, budget=64, prefix_caching=False), ATLAS)


def case_calls_in_flight_are_preempted_where_blocks_are_freed_late_async(pipeline: Pipeline) -> None:
    # Once for a slot, once for blocks.
    for slots, blocks in ((2, 400), (8, 32)):
        engine = Engine(pipeline, Options(slots=slots, blocks=blocks, late_frees=True))
        # With a connector, lost KV is loaded instead of recomputed.
        engine.session.policy._resume_cost = lambda free_blocks: lambda key: 0.0
        engine.set_policy(PLAS)
        hogs = [engine.send(program=f"hog{i}", prompt=190, max_tokens=60, attained_us=LOW) for i in range(2)]
        engine.run(steps=4)
        newcomer = engine.send(program="short", prompt=100, max_tokens=3)
        engine.run(steps=3)
        assert newcomer in engine.running()
        assert engine.session.load.preemptions_proactive == 1
        engine.finish()
        ended = engine.records()
        assert ended["short.1.2"].service_us < min(ended[f"hog{at}.1.{at}"].service_us for at in range(len(hogs)))
        engine.close()


def case_blocks_that_are_freed_late_need_no_second_victim_async(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=8, blocks=42, late_frees=True))
    engine.session.policy._resume_cost = lambda free_blocks: lambda key: 0.0
    engine.set_policy(PLAS)
    hogs = [engine.send(program=f"hog{i}", prompt=190, max_tokens=60, attained_us=LOW) for i in range(3)]
    engine.run(steps=4)
    newcomer = engine.send(program="short", prompt=100, max_tokens=3)
    # It fits into the blocks that a step in flight may still write to.
    engine.abort(hogs[0])
    assert engine.scheduler.deferred_frees
    engine.run(steps=3)
    assert newcomer in engine.running()
    assert engine.session.load.preemptions_proactive == 0
    engine.finish()
    engine.close()


def case_late_frees_under_kv_pressure_lose_no_token_async(pipeline: Pipeline) -> None:
    loads = churned(pipeline, Options(slots=8, blocks=26, budget=64, late_frees=True), PLAS)
    assert min(load.preemptions_proactive for load in loads) > 20


def case_policy_changes_in_mid_run(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(blocks=60, budget=64), seed=7)
    policies = [FCFS, PROGRAM_FCFS, MLFQ, PLAS, ATLAS]
    for round_ in range(6):
        engine.set_policy(policies[round_ % len(policies)], version=round_ + 1)
        churn(engine, requests=10)
    engine.finish()
    assert engine.session.policy_version == 6
    assert engine.session.load.hook_errors == 0
    engine.close()
