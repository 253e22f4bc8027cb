"""Hooks that raise: the engine continues, nothing is lost, and after too many failures the policy is off."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from agentserving.contract.channel import SetAccounts
from agentserving.contract.policy import PLAS
from agentserving_engine.calls import CallBook
from agentserving_engine.guard import MAX_HOOK_ERRORS
from agentserving_engine.policy import CallQueue
from agentserving_engine.session import EngineSession
from agentserving_engine.vllm_adapter import VllmAdapter
from agentserving_engine.waiting_queue import PolicyQueue, WaitingOrder
from engine.versions.cases_preemption import churn
from engine.versions.rig import TENANT, Engine, Options, Pipeline
from vllm.v1.request import Request

# Every method that does the work of a hook, and places where one fails half way.
PLACES: tuple[tuple[type, str], ...] = (
    (CallBook, "arrive"),
    (CallBook, "charge"),
    (CallBook, "end"),
    (CallQueue, "arrive"),
    (CallQueue, "charge"),
    (CallQueue, "decide"),
    (CallQueue, "finish"),
    (CallQueue, "preempt"),
    (CallQueue, "start"),
    (EngineSession, "arrive"),
    (EngineSession, "decide"),
    (EngineSession, "ended"),
    (EngineSession, "execute"),
    (EngineSession, "first_started"),
    (EngineSession, "produced"),
    (EngineSession, "rebuild"),
    (EngineSession, "report"),
    (EngineSession, "retain"),
    (EngineSession, "started"),
    (EngineSession, "startable"),
    (EngineSession, "step_ended"),
    (VllmAdapter, "answer_aborted"),
    (VllmAdapter, "preempt"),
    (VllmAdapter, "sort_running"),
    (WaitingOrder, "hide"),
    (WaitingOrder, "limit"),
)


class SabotageError(Exception):
    """A fault of the plugin."""


@contextmanager
def sabotage(owner: type, name: str, when: Callable[[], bool], *, after: bool = False) -> Iterator[None]:
    """The method raises instead of, or after, doing its work, whenever `when()` says so."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not after and when():
            raise SabotageError(name)
        result = original(self, *args, **kwargs)
        if after and when():
            raise SabotageError(name)
        return result

    setattr(owner, name, broken)
    try:
        yield
    finally:
        setattr(owner, name, original)


def every(count: int, limit: int) -> Callable[[], bool]:
    """True each `count`th time, at most `limit` times."""
    calls = itertools.count(1)
    hits = itertools.count(1)
    return lambda: next(calls) % count == 0 and next(hits) <= limit


def case_a_hook_that_raises_costs_nothing_but_its_own_work(pipeline: Pipeline) -> None:
    for seed, (owner, name) in enumerate(PLACES):
        for after in (False, True):
            engine = Engine(pipeline, Options(budget=64, blocks=60), seed=seed)
            engine.set_policy(PLAS)
            engine.step()
            for at in range(20):
                engine.direct(SetAccounts([(TENANT, f"p{at % 8}", 1000 * at, 0)]))
            with sabotage(owner, name, every(7, MAX_HOOK_ERRORS - 1), after=after):
                churn(engine, requests=12)
                engine.run()
            place = f"{owner.__name__}.{name}"
            assert engine.session.load.hook_errors > 0 or name == "rebuild", f"{place} was never reached"
            assert not engine.scheduler._guard.off
            churn(engine, requests=4, aborts=0)
            engine.finish()
            engine.close()


def case_a_preemption_that_fails_half_way_leaves_the_request_in_one_place(pipeline: Pipeline) -> None:
    # In vLLM's own method: before it has changed anything, half way, and when it hands the request to our queue.
    for owner, name in ((Request, "record_event"), (PolicyQueue, "prepend_request"), (CallQueue, "preempt")):
        engine = Engine(pipeline, Options(slots=2, budget=64))
        keys = [engine.send(program=f"p{at}", prompt=30, max_tokens=20) for at in range(3)]
        engine.run(steps=5)
        with ExitStack() as stack:
            engine.preempt(keys[0])
            stack.enter_context(sabotage(owner, name, every(1, 1)))
            engine.step()
        assert engine.session.load.hook_errors == 1, f"{name} was never reached"
        engine.finish()
        engine.close()


def case_after_too_many_failures_the_policy_is_off_and_all_are_served(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=3, budget=64, blocks=60), seed=2)
    engine.set_policy(PLAS)
    paused = engine.send(program="paused", max_tokens=8)
    engine.step()
    engine.pause("paused", True)
    engine.run(steps=2)
    with sabotage(CallQueue, "decide", every(1, 10**9)):
        churn(engine, requests=20, aborts=0.05)
        assert engine.scheduler._guard.off
        assert not isinstance(engine.scheduler.waiting, PolicyQueue), "vLLM's own queue should be back"
        engine.run(until=lambda: engine.sent[paused].finish_reason is not None)
    first, *rest = [engine.send(program=f"q{at}", max_tokens=5, attained_us=10**9 - at) for at in range(6)]
    engine.run(until=lambda: engine.sent[first].finish_reason is not None)
    assert engine.sent[rest[-1]].finish_reason is None, "not in order of arrival"
    engine.run()
    for key, sent in engine.sent.items():
        assert sent.aborted or sent.tokens == engine.expected(key)
    assert not engine.scheduler.requests
    assert engine.session.load.hook_errors == MAX_HOOK_ERRORS
    engine.close()
