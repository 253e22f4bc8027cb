"""Where a call's time went, and what became of its prefix, as the plugin's records say it."""

from __future__ import annotations

from agentserving.contract.channel import CallRecord
from agentserving.contract.phases import PhaseKind, PrefixMiss
from engine.versions.cases_preemption import churn
from engine.versions.rig import Engine, Options, Pipeline

BLOCK = 16


def ended(engine: Engine, tokens: list[int], call: str, **fields: object) -> tuple[CallRecord, list[int]]:
    """The record of a call of program `p`, and its whole context."""
    key = engine.send(program="p", call=call, prompt_tokens=tokens, max_tokens=4, **fields)  # type: ignore[arg-type]
    engine.run(until=lambda: engine.sent[key].finish_reason is not None)
    return engine.records()[call], [*tokens, *engine.sent[key].tokens]


def numbers(first: int, count: int) -> list[int]:
    return [(first + 7 * index) % 200 for index in range(count)]


def case_every_reason_for_a_lost_prefix_is_told_apart(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=2, blocks=40, budget=400, tenant_cache="shared"))
    first, context = ended(engine, numbers(1, 160), "p.1")
    assert (first.prefix_miss, first.common_tokens) == (PrefixMiss.FIRST, 0)
    second, longer = ended(engine, [*context, *numbers(5, 30)], "p.2")
    assert (second.prefix_miss, second.common_tokens, second.cached_tokens) == (PrefixMiss.NONE, 160, 160)
    changed = [*longer[:70], 201, *longer[71:]]
    third, _ = ended(engine, changed, "p.3")
    assert (third.prefix_miss, third.common_tokens, third.cached_tokens) == (PrefixMiss.DIVERGED, 64, 64)
    salted, _ = ended(engine, list(changed), "p.4", cache_salt="pepper")
    assert salted.prefix_miss == PrefixMiss.SALT
    other = engine.send(program="q", prompt=500, max_tokens=2)
    engine.run(until=lambda: engine.sent[other].finish_reason is not None)
    gone, _ = ended(engine, [*longer, *numbers(9, 20)], "p.5")
    assert gone.prefix_miss == PrefixMiss.EVICTED
    assert gone.cached_tokens < gone.common_tokens
    assert engine.session.load.hook_errors == 0
    engine.close()


def case_phases_add_up_under_preemptions_of_every_cause(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=8, blocks=26, budget=64))
    churn(engine, aborts=0)
    engine.finish()
    records = engine.records().values()
    assert any(record.preemptions for record in records)
    for record in records:
        total = {kind: sum(us for each, us in record.phases if each == kind) for kind in PhaseKind}
        assert total[PhaseKind.PREFILL] > 0
        assert total[PhaseKind.QUEUE] + total[PhaseKind.HELD] + total[PhaseKind.PREEMPTED] == record.wait_us
        # A call that runs is in a step, or between two.
        assert total[PhaseKind.PREFILL] + total[PhaseKind.DECODE] >= record.service_us
        assert not total[PhaseKind.PREEMPTED] or record.preemptions
    assert engine.session.load.hook_errors == 0
    engine.close()


def case_a_paused_program_is_held(pipeline: Pipeline) -> None:
    engine = Engine(pipeline)
    engine.pause("p", True)
    key = engine.send(program="p", call="p.1", max_tokens=4)
    other = engine.send(program="q", max_tokens=8)
    engine.run(until=lambda: engine.sent[other].finish_reason is not None)
    engine.pause("p", False)
    engine.run(until=lambda: engine.sent[key].finish_reason is not None)
    kinds = {kind for kind, _ in engine.records()["p.1"].phases}
    assert PhaseKind.HELD in kinds
    engine.close()
