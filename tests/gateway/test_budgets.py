"""Budgets at the door: given by a header, announced by another, and a spent one holds calls before it refuses them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from agentserving.contract.budgets import Budget
from agentserving.v1 import program_service_pb2 as pb
from agentserving.v1 import types_pb2
from agentserving_controlplane.table import budgets
from agentserving_gateway.calls import Refusal
from agentserving_gateway.errors import HttpError
from agentserving_gateway.spent_budgets import SpentBudgets
from controlplane.table_builders import key
from gateway.gateway_rig import Engine, Rig, answer_and_stay, rig, until, value
from support.eventually import eventually_async

BUDGET = "x-agentserving-budget"


def head(program: str = "p", budget: str = "", **more: str) -> str:
    lines = {"x-agentserving-program-id": program, BUDGET: budget, **more}
    return "".join(f"{name}: {text}\r\n" for name, text in lines.items() if text)


class Answering:
    """An engine's script: answers, and reports so many tokens of each call."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.engine: Engine | None = None

    async def __call__(self, request: bytes, reader: Any, writer: Any) -> bool:
        stays = await answer_and_stay(request, reader, writer)
        assert self.engine is not None
        await self.engine.report(
            request, prompt_tokens=self.tokens, service_us=1_000_000, outcome=types_pb2.OUTCOME_COMPLETED
        )
        return stays


async def call(made: Rig, headers: str, **more: Any) -> bytes:
    """A call, and what it used is counted."""
    answer = await made.post(headers=headers, **more)
    await made.until_idle()
    return answer


def answering(made: Rig, tokens: int) -> None:
    script = Answering(tokens)
    script.engine = made.engines[0]
    made.engines[0].script = script


async def resume(made: Rig, program: str = "p", **amounts: int) -> None:
    await made.programs.ResumeProgram(pb.ResumeProgramRequest(program_id=program, add=types_pb2.Budget(**amounts)))


async def test_a_header_limits_a_program_and_answers_warn_hold_refuse_and_go_on() -> None:
    async with rig(answer_and_stay, budget_hold_s=60) as made:
        answering(made, 40)
        first = await call(made, head(budget="tokens=100,calls=50"))
        assert (first[:12], value(first, BUDGET)) == (b"HTTP/1.1 200", "")
        # Later headers change nothing, and are not needed.
        assert value(await call(made, head(budget="tokens=100k")), BUDGET) == ""
        warned = await call(made, head())
        assert value(warned, BUDGET) == "tokens;remaining=20;limit=100, calls;remaining=48;limit=50"
        # 120 of 100: the next call waits, of a sub-agent too, until something is added.
        waiting = [asyncio.create_task(made.post(headers=head(), bound_s=60)) for _ in range(2)]
        child = {"x-agentserving-parent-program-id": "p"}
        waiting.append(asyncio.create_task(made.post(headers=head("child", **child), bound_s=60)))
        await until(lambda: made.admission.spent.held == 3)
        paused = (await made.programs.GetProgram(pb.GetProgramRequest(program_id="p"))).program
        assert (paused.state, paused.pause_cause) == (
            types_pb2.PROGRAM_STATE_PAUSED, types_pb2.PAUSE_CAUSE_BUDGET,
        )  # fmt: skip
        await resume(made, tokens=900)
        assert [answer[:12] for answer in await asyncio.gather(*waiting)] == [b"HTTP/1.1 200"] * 3
        await made.until_idle()
        row = made.plane.table.rows[key("p")]
        assert budgets.spent_of(row) == Budget(tokens=240, engine_us=6_000_000, calls=6)
        assert row.times.held_us > 0


@pytest.mark.parametrize(("path", "words"), [("/v1/completions", "error"), ("/v1/messages", "type")])
async def test_a_call_that_is_held_for_too_long_is_refused_with_what_to_do(path: str, words: str) -> None:
    async with rig(answer_and_stay, budget_hold_s=1.2) as made:
        answering(made, 10)
        await call(made, head(budget="tokens=10,engine-seconds=300"), path=path)

        async def refused() -> bytes:
            answer = await made.post(path, headers=head())
            # On a busy machine the picker may be away for a moment, and the call is served without it.
            return answer if answer.startswith(b"HTTP/1.1 429") else b""

        answer = await eventually_async(refused)
        assert value(answer, "retry-after") == "10"
        assert value(answer, BUDGET) == "tokens;remaining=0;limit=10, engine-seconds;remaining=299.000;limit=300.000"
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert "10 of 10 tokens" in error["message"]
        assert "agentserving resume p --add tokens=100k (the call was held for " in error["message"]
        if words == "error":
            assert error["code"] == "program_budget_spent"
        else:
            assert error["type"] == "rate_limit_error"


async def test_without_a_hold_a_call_is_refused_at_once() -> None:
    async with rig(answer_and_stay, budget_hold_s=0) as made:
        answering(made, 10)
        await call(made, head(budget="calls=1"))
        answer = await made.post(headers=head())
        assert (answer[:12], value(answer, BUDGET)) == (b"HTTP/1.1 429", "calls;remaining=0;limit=1")


async def test_a_budget_that_cannot_be_read_is_refused_before_the_call() -> None:
    async with rig(answer_and_stay) as made:
        answer = await made.post(headers=head(budget="200k"))
        assert answer.startswith(b"HTTP/1.1 400")
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error["code"] == "bad_budget"
        assert error["message"].startswith("x-agentserving-budget: '200k' is no part of a budget: write tokens=200k")
        assert not made.plane.table.rows


async def test_a_client_that_leaves_is_held_no_more() -> None:
    async with rig(answer_and_stay, budget_hold_s=60) as made:
        answering(made, 10)
        await call(made, head(budget="calls=1"))
        waiting = asyncio.create_task(made.post(headers=head(), bound_s=60))
        await until(lambda: made.admission.spent.held == 1)
        waiting.cancel()
        await until(lambda: made.admission.spent.held == 0)


SPENT = Refusal(code=8, reason="PROGRAM_BUDGET_SPENT", message="the budget is spent", retry_after_s=10)


async def test_more_calls_than_a_gateway_may_hold_are_refused() -> None:
    spent = SpentBudgets(60.0, most=1)
    first = asyncio.create_task(spent.wait(0.0, SPENT))
    await until(lambda: spent.held == 1)
    with pytest.raises(HttpError) as refused:
        await spent.wait(0.0, SPENT)
    assert (refused.value.status, refused.value.code) == (429, "program_budget_spent")
    assert await first > 0
    assert spent.held == 0
