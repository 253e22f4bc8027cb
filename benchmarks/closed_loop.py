"""A closed loop on a real engine: N programs are open, the next one starts when one ends. Figures as in virtual time.

The calls of a program run as its trace says: after their parents and a pause, with the context that they extend.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx
from agentserving import Client
from agentserving.contract.ids import ProgramId
from agentserving.programs.headers import PROGRAM_ID, PROGRAM_NAME, THREAD_ID
from agentserving_replay.closed_loop import Loop, LoopFigures, loop_figures
from agentserving_replay.results import CallResult
from agentserving_replay.traces.trace import Call, Program
from msgspec import structs

# Token ids of prompts, all but the special ones.
FIRST_TOKEN, VOCABULARY = 3, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Factors on a trace: tokens of prompts, generated tokens, and seconds between calls."""

    prompt: float
    output: float
    seconds: float

    def program(self, program: Program) -> Program:
        """The program with all its calls, smaller."""
        smaller: list[Call] = []
        for call in program.calls:
            known = (
                smaller[call.extends].prompt_tokens + smaller[call.extends].output_tokens if call.extends >= 0 else 0
            )
            prompt = max(2, round(call.prompt_tokens * self.prompt))
            shared = min(round(call.shared_tokens * self.prompt), known, prompt - 1)
            smaller.append(
                structs.replace(
                    call,
                    prompt_tokens=prompt,
                    output_tokens=max(1, round(call.output_tokens * self.output)),
                    shared_tokens=shared,
                    extends=call.extends if shared else -1,
                    gap_s=call.gap_s * self.seconds,
                )
            )
        return replace(program, calls=tuple(smaller))


async def lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines of a stream of events. httpx also splits at U+0085 and U+2028, which JSON strings contain unescaped."""
    rest = b""
    async for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line
    yield rest


class Streaming:
    """Streams completions of token ids from one front. The engine needs `--enable-prompt-tokens-details`."""

    def __init__(self, http: httpx.AsyncClient, model: str, seed: int) -> None:
        self._http, self._model, self._dice = http, model, random.Random(seed)

    def fresh(self, tokens: int) -> list[int]:
        """Random tokens, which no cache contains."""
        return self._dice.choices(range(FIRST_TOKEN, VOCABULARY), k=tokens)

    async def chunks(self, prompt: list[int], output: int, headers: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        """The chunks of an answer of exactly `output` tokens; the last one has the usage. httpx.HTTPError."""
        body = {
            "model": self._model, "prompt": prompt, "max_tokens": output, "ignore_eos": True, "return_token_ids": True,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        async with self._http.stream("POST", "completions", json=body, headers=dict(headers)) as response:
            response.raise_for_status()
            async for line in lines(response.aiter_bytes()):
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))


class RealLoop:
    """One run of a closed loop. `client` closes each program when it has ended, as an agent would."""

    def __init__(self, client: Client, streaming: Streaming, tag: str) -> None:
        self._client, self._streaming, self._tag = client, streaming, tag
        self._began = 0.0
        self._ended: list[CallResult] = []
        self._open: dict[tuple[ProgramId, int], CallResult] = {}
        self._live: set[ProgramId] = set()
        self._program_ends: list[float] = []

    async def run(self, programs: Iterator[Program], loop: Loop, ramp_s: float) -> LoopFigures:
        """Runs for the loop's duration, then cuts off what is open. ValueError when no call ended after the warm-up."""
        self._began = time.perf_counter()
        try:
            async with asyncio.timeout(loop.duration_s), asyncio.TaskGroup() as group:
                for index in range(loop.concurrency):
                    group.create_task(self._one_after_another(programs, ramp_s * index / loop.concurrency))
        except TimeoutError:
            pass
        still_open = list(self._open.values())
        for program_id in self._live:
            await asyncio.to_thread(self._client.cancel_program, program_id)
        ended = sum(end_s >= loop.warmup_s for end_s in self._program_ends)
        return loop_figures(loop, 1, self._ended, still_open, ended)

    def _now_us(self) -> int:
        # 0 means "not yet".
        return 1 + int(1e6 * (time.perf_counter() - self._began))

    async def _one_after_another(self, programs: Iterator[Program], delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        for program in programs:
            named = replace(program, program_id=ProgramId(f"{self._tag}-{program.program_id}"))
            self._live.add(named.program_id)
            await self._program(named)
            await asyncio.to_thread(self._client.close_program, named.program_id)
            self._live.discard(named.program_id)
            self._program_ends.append(self._now_us() / 1e6)

    async def _program(self, program: Program) -> None:
        contexts: list[list[int]] = [[] for _ in program.calls]
        done = [asyncio.Event() for _ in program.calls]

        async def go(index: int, call: Call) -> None:
            for parent in call.parents:
                await done[parent].wait()
            await asyncio.sleep(call.gap_s)
            known = contexts[call.extends][: call.shared_tokens] if call.extends >= 0 else []
            prompt = known + self._streaming.fresh(call.prompt_tokens - len(known))
            contexts[index] = prompt + await self._call(program, index, prompt)
            done[index].set()

        async with asyncio.TaskGroup() as group:
            for index, call in enumerate(program.calls):
                group.create_task(go(index, call))

    async def _call(self, program: Program, index: int, prompt: list[int]) -> list[int]:
        call, key = program.calls[index], (program.program_id, index)
        headers = {PROGRAM_ID: program.program_id, PROGRAM_NAME: program.name, THREAD_ID: call.thread or "main"}
        result = self._open[key] = CallResult(
            arrived_us=self._now_us(), first_token_us=0, ended_us=0,
            prompt_tokens=len(prompt), gpu_tokens=0, host_tokens=0, output_tokens=0,
        )  # fmt: skip
        answer: list[int] = []
        cached = 0
        async for chunk in self._streaming.chunks(prompt, call.output_tokens, headers):
            for choice in chunk["choices"]:
                answer += choice.get("token_ids") or ()
            if answer and not result.first_token_us:
                result = self._open[key] = replace(result, first_token_us=self._now_us())
            if chunk.get("usage"):
                cached = (chunk["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        del self._open[key]
        self._ended.append(replace(result, ended_us=self._now_us(), gpu_tokens=cached, output_tokens=len(answer)))
        return answer
