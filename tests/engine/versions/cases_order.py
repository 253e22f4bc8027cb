"""Which call runs when: levels, preempted calls, and calls that vLLM had to pass over."""

from __future__ import annotations

from agentserving.contract.policy import PLAS
from engine.versions.rig import Engine, Options, Pipeline

LOW = 10**9  # microseconds that put a program into the last level


def case_a_newcomer_of_a_better_level_displaces_a_running_call(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=2))
    engine.set_policy(PLAS)
    hogs = [engine.send(program=f"hog{i}", max_tokens=60, attained_us=LOW) for i in range(2)]
    engine.run(steps=4)
    newcomer = engine.send(program="short", max_tokens=3)
    engine.run(steps=2)
    assert newcomer in engine.running()
    assert len(engine.running()) == 2
    assert engine.session.load.preemptions_proactive == 1
    engine.run(until=lambda: engine.sent[newcomer].finish_reason is not None)
    assert all(engine.sent[hog].finish_reason is None for hog in hogs)
    engine.finish()
    engine.close()


def case_a_preempted_call_does_not_start_again_in_the_same_step(pipeline: Pipeline) -> None:
    engine = Engine(pipeline)
    key = engine.send(program="p", max_tokens=30)
    engine.run(steps=3)
    engine.preempt(key)
    engine.step()
    assert engine.running() == []
    engine.finish()
    assert engine.records()["p.1.0"].preemptions == 1
    engine.close()


def case_a_call_may_finish_while_it_is_preempted_async(pipeline: Pipeline) -> None:
    finished_so = 0
    for first in range(1, 9):
        engine = Engine(pipeline)
        key = engine.send(program="p", max_tokens=4)
        other = engine.send(program="q", max_tokens=12)
        engine.run(steps=first)
        engine.preempt(key)
        engine.run(steps=1)
        # It was preempted before that one step, in which it could not start again.
        finished_so += engine.sent[key].request.num_preemptions and engine.sent[key].finish_reason is not None
        engine.finish()
        assert engine.sent[other].finish_reason is not None
        assert set(engine.records()) == {"p.1.0", "q.1.1"}
        assert engine.records()["p.1.0"].output_tokens == 4
        engine.close()
    assert finished_so, "the case never met the moment"


def case_resetting_the_prefix_cache_preempts_every_call_and_loses_nothing(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(budget=64))
    for at in range(6):
        engine.send(program=f"p{at}", prompt=50, max_tokens=40)
    for _ in range(4):
        engine.run(steps=5)
        assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        engine.run(steps=1)
    engine.finish()
    assert engine.session.load.preemptions_reactive >= 4
    engine.close()


def case_prompts_are_counted_once_however_often_they_are_recomputed(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(prefix_caching=False))
    key = engine.send(program="p", prompt=33, max_tokens=30)
    for _ in range(5):
        engine.run(steps=4)
        engine.preempt(key)
    engine.finish()
    record = engine.records()["p.1.0"]
    assert record.preemptions >= 4
    assert (record.prompt_tokens, record.cached_tokens, record.output_tokens) == (33, 0, 30)
    load = engine.session.load
    assert (load.prompt_tokens, load.output_tokens) == (33, 30)
    engine.close()


def case_both_queues_are_served_by_the_priority_setting_of_vllm_as_well(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=2, queue="priority"))
    engine.set_policy(PLAS)
    low = [engine.send(program=f"low{i}", max_tokens=30, attained_us=LOW, priority=0) for i in range(2)]
    engine.run(steps=2)
    # The client's own priority, in the opposite order, has no effect.
    high = engine.send(program="high", max_tokens=5, priority=9)
    engine.run(until=lambda: engine.sent[high].finish_reason is not None)
    assert all(engine.sent[key].finish_reason is None for key in low)
    engine.finish()
    engine.close()
