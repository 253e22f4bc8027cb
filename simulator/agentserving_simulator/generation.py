"""One request in the engine: its answers are added, and what they generate comes back token by token."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable

from agentserving_engine.clock import now_us

from agentserving_simulator.answers.asked import Asked, too_long
from agentserving_simulator.answers.behaviour import Behaviour, plan_of
from agentserving_simulator.answers.plan import PartKind, Piece, Plan
from agentserving_simulator.dialects.reply import Answer, Heading, Usage, Whole, Writer
from agentserving_simulator.engine import SimulatedEngine
from agentserving_simulator.requests import Finished, Outputs, SimRequest


class Generation:
    """The answers to one HTTP request; `close` must follow, which ends those that are still running."""

    def __init__(self, engine: SimulatedEngine, asked: Asked, behaviour: Behaviour, seed: int, name: str) -> None:
        """Raises BadRequestError. `name` begins the ids of the engine's requests."""
        self._engine, self._asked = engine, asked
        limit = engine.limits.max_model_len
        longest = max(len(prompt) for prompt in asked.prompts)
        if longest >= limit:
            too_long(longest, limit)
        outputs: Outputs = asyncio.Queue()
        self.plans: list[Plan] = []
        self._requests: list[SimRequest] = []
        for choice, prompt in enumerate(prompt for prompt in asked.prompts for _ in range(asked.choices)):
            room = limit - len(prompt)
            most = room if asked.max_tokens is None else min(asked.max_tokens, room)
            plan = plan_of(asked, behaviour, random.Random, seed >> choice, most)
            self.plans.append(plan)
            request = SimRequest(
                f"{choice}_{name}", list(prompt), most, seed=seed >> choice, choice=choice, outputs=outputs,
                answer=plan.tokens, ends_after=plan.ends_after, salt=asked.cache_salt,
            )  # fmt: skip
            self._requests.append(request)
        self._reasoning = 0

    def start(self, session: str | None) -> None:
        """Gives the requests to the engine; `session` is the ticket of a managed call."""
        for each in self._requests:
            self._engine.add(each, session, now_us(), time.time())

    def close(self) -> None:
        """Ends what still runs."""
        for each in self._requests:
            self._engine.cancel(each.request_id, now_us())

    @property
    def usage(self) -> Usage:
        """So far."""
        prompts = self._requests[:: self._asked.choices]
        return Usage(
            prompt_tokens=sum(each.prompt_tokens for each in prompts),
            output_tokens=sum(each.generated for each in self._requests),
            cached_tokens=sum(each.cached_tokens for each in prompts),
            reasoning_tokens=self._reasoning,
        )

    async def outputs(self) -> AsyncIterator[tuple[int, Piece | Finished]]:
        """Tokens and ends of all choices, in the order in which they are produced."""
        left, generated = len(self._requests), [0] * len(self._requests)
        while left:
            choice, item = await self._requests[0].outputs.get()
            if isinstance(item, Finished):
                left -= 1
                yield choice, item
                continue
            plan, index = self.plans[choice], generated[choice]
            generated[choice] += 1
            piece = plan.piece(index, item)
            self._reasoning += plan.parts[piece.part].kind is PartKind.REASONING
            yield choice, piece

    async def whole(self, heading: Heading, document: Whole) -> dict[str, object]:
        """The answers as one document."""
        answers = [Answer(plan) for plan in self.plans]
        async for choice, item in self.outputs():
            if isinstance(item, Finished):
                answers[choice].reason = item.reason
            else:
                answers[choice].add(item)
        return document(heading, self._asked, answers, self.usage)

    async def events(self, writer: Writer, on_token: Callable[[int], None]) -> AsyncIterator[bytes]:
        """The answers as events; `on_token` is called with the number of each token, before it is shown."""
        begun, number = False, 0
        async for choice, item in self.outputs():
            if not begun:
                begun = True
                for event in writer.begin(self.usage):
                    yield event
            if isinstance(item, Finished):
                for event in writer.finished(choice, item.reason):
                    yield event
                continue
            on_token(number)
            number += 1
            for event in writer.piece(choice, item):
                yield event
        for event in writer.end(self.usage):
            yield event
