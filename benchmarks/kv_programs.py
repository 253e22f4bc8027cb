"""Programs whose contexts are more than the KV cache holds, drawn by seed, and the load that makes them so. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from agentserving_replay.traces.trace import Call, Program
from agentserving_replay.workloads import generate, poisson

from benchmarks.validation import scaled

# Contexts end here, as they do at a model's limit.
MAX_CONTEXT = 6000
# Tools of a coding agent: a file is read at once, tests take their time. Half a second in the median, twice what the
# tiny model takes for a whole context again: with slower tools an engine that waits for them only idles.
TOOL_MU, TOOL_SIGMA, LEAST_TOOL_S, MOST_TOOL_S = -0.7, 0.8, 0.3, 8.0
# Of the paper's ShareGPT: a chat's context is some hundred to some thousand tokens then.
CHAT_SCALE, MAX_CHAT = 0.4, 2500
FITTING_ROUNDS = 8


def _within(dice: random.Random, mu: float, sigma: float, least: float, most: float) -> float:
    return max(least, min(most, dice.lognormvariate(mu, sigma)))


def coding_agent(dice: random.Random) -> tuple[Call, ...]:
    """6 to 20 calls: what a tool says (some hundred tokens) is read and answered shortly."""
    calls: list[Call] = []
    context = 0
    for at in range(dice.randint(6, 20)):
        new = round(_within(dice, 4.9, 0.6, 40, 700) if at else _within(dice, 6.6, 0.4, 500, 2000))
        output = round(_within(dice, 2.9, 0.5, 8, 40))
        gap_s = _within(dice, TOOL_MU, TOOL_SIGMA, LEAST_TOOL_S, MOST_TOOL_S) if at else 0.0
        if context + new + output > MAX_CONTEXT:
            break
        calls.append(Call(context + new, output, (at - 1,) if at else (), gap_s, at - 1 if at else -1, context))
        context += new + output
    return tuple(calls)


def coding_agents(seed: int, rate_per_s: float, count: int) -> list[Program]:
    """The same programs of a seed at every rate; only their arrivals are closer together."""
    arrivals = poisson(random.Random(f"kv-{seed}-arrivals"), rate_per_s)
    return [
        Program(f"agent-{at}", "agent", next(arrivals), coding_agent(random.Random(f"kv-{seed}-{at}")))
        for at in range(count)
    ]


def chats(seed: int, rate_per_s: float, count: int) -> list[Program]:
    """ShareGPT's conversations in small: nobody thinks between two messages."""
    return [p for p in scaled(generate("sharegpt", seed, rate_per_s, count), CHAT_SCALE, MAX_CHAT) if p.calls]


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of programs, for how long they arrive, and how many times the KV cache their contexts are to be."""

    name: str
    draw: Callable[[int, float, int], list[Program]]
    window_s: float
    pressure: float
    # Policies that it has no use for.
    without: tuple[str, ...] = ()

    def programs(self, seed: int, rate_per_s: float) -> list[Program]:
        """Those of a window."""
        return self.draw(seed, rate_per_s, max(4, round(rate_per_s * self.window_s)))


AGENTS = Shape("agents", coding_agents, window_s=10.0, pressure=2.0)
# Chats wait for no tool, so there is little to forget; and `atlas` would be `plas` once more.
CHATS = Shape("chats", chats, window_s=6.0, pressure=1.4, without=("atlas", "program-plas-forgets"))


def pressure(programs: Sequence[Program], latencies: Sequence[float], pool_tokens: int) -> float:
    """Contexts of the programs that were under way over the tokens that the KV cache holds, in the mean of a run.

    A program counts from its arrival to its end, its tools included, with the mean of its calls' contexts.
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
    """Programs a second, within bounds, that bring the shape's pressure; `pressure_of` runs programs of a seed."""
    for _ in range(FITTING_ROUNDS):
        rate = (least * most) ** 0.5
        if pressure_of(shape.programs(0, rate)) < shape.pressure:
            least = rate
        else:
            most = rate
    return round((least * most) ** 0.5, 3)


def in_turn(names: Iterable[str], seed: int) -> list[str]:
    """The order of a seed's runs: there and back again, so that a machine that becomes slower is so for all alike."""
    ordered = list(names)
    turn = seed // 2 * 2 % len(ordered)
    ordered = ordered[turn:] + ordered[:turn]
    return ordered[::-1] if seed % 2 else ordered
