"""What separates tenants, and what a call without a ticket gets."""

from __future__ import annotations

from agentserving.contract.policy import PLAS
from engine.versions.rig import Engine, Options, Pipeline

PROMPT = list(range(1, 161))


def cached(engine: Engine, tenant: str, program: str) -> int:
    """Cached tokens of a call with PROMPT, at its end."""
    call = f"{program}.{tenant}"
    key = engine.send(program=program, call=call, tenant=tenant, prompt_tokens=list(PROMPT), max_tokens=2)
    engine.run(until=lambda: engine.sent[key].finish_reason is not None)
    return int(engine.records()[call].cached_tokens)


def case_a_tenants_prompts_are_found_by_that_tenant_only(pipeline: Pipeline) -> None:
    engine = Engine(pipeline)
    assert cached(engine, "acme", "p") == 0
    assert cached(engine, "globex", "p") == 0, "another tenant's prompt was found"
    assert cached(engine, "acme", "q") >= 144, "its own prompt was not found"
    assert cached(engine, "globex", "q") >= 144
    assert cached(engine, "default", "p") == 0
    engine.close()


def case_a_cluster_of_one_tenant_may_share_caches(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(tenant_cache="shared"))
    assert cached(engine, "acme", "p") == 0
    assert cached(engine, "globex", "p") >= 144
    engine.close()


def case_a_call_without_a_ticket_is_refused_where_tickets_are_required(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(unticketed="refuse"))
    managed = engine.send(program="p", max_tokens=6)
    strangers = [engine.send(max_tokens=6) for _ in range(3)]
    engine.run(until=lambda: all(engine.sent[key].finish_reason is not None for key in (managed, *strangers)))
    assert [len(engine.sent[key].tokens) for key in (managed, *strangers)] == [6, 0, 0, 0]
    assert engine.session.load.hook_errors == 0
    engine.finish()
    engine.close()


def case_calls_without_a_ticket_run_behind_all_others(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=1))
    engine.set_policy(PLAS)
    strangers = [engine.send(max_tokens=40) for _ in range(2)]
    engine.run(steps=3)
    heavy = engine.send(program="heavy", max_tokens=3, attained_us=10**9)
    engine.run(until=lambda: engine.sent[heavy].finish_reason is not None)
    assert [engine.sent[key].finish_reason for key in strangers] == [None, None]
    engine.finish()
    engine.close()
