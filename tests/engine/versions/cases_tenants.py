"""What separates tenants, and what a call without a ticket gets."""

from __future__ import annotations

from collections import Counter

from agentserving.contract.channel import SetShares
from agentserving.contract.policy import FCFS, PLAS, Policy
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


def produced(engine: Engine, policy: Policy, steps: int) -> Counter[str]:
    """Tokens by tenant while two of them load the engine; `globex` with three times the calls and a new program each.

    `acme` has weight 2. The first steps are not counted.
    """
    engine.set_policy(policy)
    engine.direct(SetShares([("acme", 2)]))
    tenants: dict[str, str] = {}
    before: Counter[str] = Counter()
    for step in range(steps + 100):
        for tenant, most in (("acme", 8), ("globex", 24)):
            open_calls = [k for k, of in tenants.items() if of == tenant and engine.sent[k].finish_reason is None]
            for number in range(most - len(open_calls)):
                program = f"g{len(tenants)}" if tenant == "globex" else f"a{number}"
                key = engine.send(program=program, call=f"{tenant}.{len(tenants)}", tenant=tenant, max_tokens=20)
                tenants[key] = tenant
        if step == 100:
            before = _tokens(engine, tenants)
        engine.step()
    assert engine.session.load.hook_errors == 0
    return _tokens(engine, tenants) - before


def _tokens(engine: Engine, tenants: dict[str, str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for key, tenant in tenants.items():
        found[tenant] += len(engine.sent[key].tokens)
    return found


def case_tenants_share_the_engine_by_weight_under_any_policy(pipeline: Pipeline) -> None:
    for policy in (FCFS, PLAS):
        engine = Engine(pipeline, Options(slots=4))
        tokens = produced(engine, policy, 300)
        assert abs(tokens["acme"] / tokens["globex"] / 2 - 1) < 0.1, tokens
        engine.close()


def case_tenants_share_the_engine_by_weight_when_blocks_run_out(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=6, blocks=14))
    tokens = produced(engine, PLAS, 300)
    assert engine.session.load.preemptions_reactive > 5
    assert abs(tokens["acme"] / tokens["globex"] / 2 - 1) < 0.15, tokens
    engine.close()


def case_a_tenant_that_waits_gets_a_slot_even_if_no_call_ever_ends(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=2))
    engine.set_policy(FCFS)
    for number in range(4):
        engine.send(program=f"g{number}", tenant="globex", max_tokens=3000)
    engine.run(steps=10)
    key = engine.send(program="a", tenant="acme", max_tokens=3)
    # A quantum of five seconds, in steps of ten milliseconds.
    engine.run(steps=490)
    assert not engine.sent[key].tokens
    engine.run(steps=30)
    assert engine.sent[key].finish_reason is not None
    assert engine.session.load.hook_errors == 0
    engine.close()
