"""Programs whose contexts together exceed the KV cache, drawn by seed, and the arrival rate that makes them. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from agentserving.contract.ids import ProgramId
from agentserving_replay.traces.trace import Call, Program
from agentserving_replay.workloads import generate, poisson

from benchmarks.validation import next_turn, scaled

T = TypeVar("T")

# Longest context, as a model's limit would set it.
MAX_CONTEXT = 6000
# Tool times of a coding agent: reading a file is immediate, running tests takes seconds. The median is half a second,
# twice what the tiny model needs to recompute a whole context: an engine that waits for slower tools only idles.
TOOL_MU, TOOL_SIGMA, LEAST_TOOL_S, MOST_TOOL_S = -0.7, 0.8, 0.3, 8.0
# Factor on the paper's ShareGPT token counts; it gives chats contexts of some hundred to some thousand tokens.
CHAT_SCALE, MAX_CHAT = 0.4, 2500
FITTING_ROUNDS = 8


def _within(rng: random.Random, mu: float, sigma: float, least: float, most: float) -> float:
    return max(least, min(most, rng.lognormvariate(mu, sigma)))


def coding_agent(rng: random.Random) -> tuple[Call, ...]:
    """6 to 20 calls: each reads a tool's output (some hundred tokens) and answers briefly."""
    calls: list[Call] = []
    context = 0
    for at in range(rng.randint(6, 20)):
        new = round(_within(rng, 4.9, 0.6, 40, 700) if at else _within(rng, 6.6, 0.4, 500, 2000))
        output = round(_within(rng, 2.9, 0.5, 8, 40))
        gap_s = _within(rng, TOOL_MU, TOOL_SIGMA, LEAST_TOOL_S, MOST_TOOL_S) if at else 0.0
        if context + new + output > MAX_CONTEXT:
            break
        calls.append(next_turn(at, context, new, output, gap_s))
        context += new + output
    return tuple(calls)


def coding_agents(seed: int, rate_per_s: float, count: int) -> list[Program]:
    """`count` agents. A seed gives the same programs at every rate; only their arrivals are closer together."""
    arrivals = poisson(random.Random(f"kv-{seed}-arrivals"), rate_per_s)
    return [
        Program(
            program_id=ProgramId(f"agent-{at}"),
            name="agent",
            arrival_s=next(arrivals),
            calls=coding_agent(random.Random(f"kv-{seed}-{at}")),
        )
        for at in range(count)
    ]


def chats(seed: int, rate_per_s: float, count: int) -> list[Program]:
    """ShareGPT's conversations, scaled down, without pauses between messages."""
    return [p for p in scaled(generate("sharegpt", seed, rate_per_s, count), CHAT_SCALE, MAX_CHAT) if p.calls]


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of program, its arrival window, and the ratio of its contexts to the KV cache that is aimed at."""

    name: str
    draw: Callable[[int, float, int], list[Program]]
    window_s: float
    pressure: float
    # Policies that are not worth running with it.
    without: tuple[str, ...] = ()

    def programs(self, seed: int, rate_per_s: float) -> list[Program]:
        """The programs that arrive within the window."""
        return self.draw(seed, rate_per_s, max(4, round(rate_per_s * self.window_s)))


AGENTS = Shape("agents", coding_agents, window_s=10.0, pressure=2.0)
# Chats have no tools, so retention has little to do, and `atlas` would be `plas` a second time.
CHATS = Shape("chats", chats, window_s=6.0, pressure=1.4, without=("atlas", "program-plas-forgets"))


def pressure(programs: Sequence[Program], latencies: Sequence[float], pool_tokens: int) -> float:
    """Contexts of live programs divided by the capacity of the KV cache, averaged over a run.

    A program counts from its arrival to its end, tool times included, with the mean context of its calls.
    """
    token_s = sum(
        latency * statistics.fmean(call.prompt_tokens + call.output_tokens for call in program.calls)
        for program, latency in zip(programs, latencies, strict=True)
    )
    return token_s / pool_tokens / makespan_s(programs, latencies)


def makespan_s(programs: Sequence[Program], latencies: Sequence[float]) -> float:
    """From the first arrival to the last end."""
    ends = (program.arrival_s + latency for program, latency in zip(programs, latencies, strict=True))
    return max(ends) - min(program.arrival_s for program in programs)


def fitted_rate(shape: Shape, pressure_of: Callable[[list[Program]], float], least: float, most: float) -> float:
    """Programs per second, between `least` and `most`, at which `pressure_of` finds the shape's pressure."""
    for _ in range(FITTING_ROUNDS):
        rate = (least * most) ** 0.5
        if pressure_of(shape.programs(0, rate)) < shape.pressure:
            least = rate
        else:
            most = rate
    return float(round((least * most) ** 0.5, 3))


def in_turn(names: Iterable[T], seed: int) -> list[T]:
    """The order of a seed's runs. Odd seeds reverse it, so that a drift of the machine affects all policies alike."""
    ordered = list(names)
    turn = seed // 2 * 2 % len(ordered)
    ordered = ordered[turn:] + ordered[:turn]
    return ordered[::-1] if seed % 2 else ordered
