"""What each front is asked to do, and what is made of the answers. Pure."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentserving_replay.figures import interval

from benchmarks.bars import Bar, bar

CHUNKS = 200
STEP_US = 10_000
BIG_PER_S = 4.0
DIRECT, OURS = "direct", "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`rate_per_s` is an open loop, `callers` a closed one. `big_bytes`: bodies that come beside the load's calls."""

    name: str
    prompt_bytes: int = 2_000
    tokens: int = 1
    stream: bool = False
    rate_per_s: float = 0.0
    callers: int = 0
    seconds: float = 4.0
    big_bytes: int = 0

    @property
    def flags(self) -> list[str]:
        return ["-r", str(self.rate_per_s)] if self.rate_per_s else ["-c", str(self.callers)]


LOADS = (
    Load(name="50/s", rate_per_s=50),
    Load(name="200/s", rate_per_s=200),
    Load(name="400/s", rate_per_s=400),
    Load(name="one-token streams, 25/s", rate_per_s=25, stream=True),
    Load(name="one-token streams, 200/s", rate_per_s=200, stream=True),
    Load(name="5,000 chunks/s", rate_per_s=25, stream=True, tokens=CHUNKS, seconds=5),
    Load(name="40,000 chunks/s", rate_per_s=200, stream=True, tokens=CHUNKS, seconds=5),
    Load(name="1 MB, one caller", callers=1, prompt_bytes=1_000_000, seconds=2),
    Load(name="200/s beside 8 MiB", rate_per_s=200, big_bytes=8 << 20),
    Load(name="32 callers", callers=32),
)


def body(prompt_bytes: int, tokens: int = 1, *, stream: bool = False) -> bytes:
    """A chat completion. What upstream.c reads of it comes first."""
    words = ("lorem ipsum dolor " * (prompt_bytes // 18 + 1))[:prompt_bytes]
    document = {"model": "tiny", "max_tokens": tokens, "stream": stream}
    return json.dumps({**document, "messages": [{"role": "user", "content": words}]}).encode()


# Front -> load -> one entry per round: the load generator's figures, `cpu` per part (ms a call), `start_s`.
Rounds = Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]


def added(rounds: Rounds, front: str, load: str, quantile: str) -> list[float]:
    """Milliseconds over the direct way, round by round."""
    pairs = zip(rounds[front].get(load, ()), rounds[DIRECT].get(load, ()), strict=False)
    return [this[quantile] - direct[quantile] for this, direct in pairs]


def cpu(rounds: Rounds, front: str, load: str) -> list[float]:
    """CPU of all of a front's processes, milliseconds a call."""
    return [each["cpu_ms"] for each in rounds[front].get(load, ())]


def ratio(rounds: Rounds, this: str, other: str, load: str, figure: str) -> tuple[float, float, float]:
    """This over the other, averaged in logarithms, and its 95 % interval."""
    pairs = zip(rounds[this][load], rounds[other][load], strict=True)
    logs = [math.log(a[figure] / b[figure]) for a, b in pairs]
    mean, half = interval(logs)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half) if math.isfinite(half) else math.inf


def bars(rounds: Rounds, front: str = OURS) -> list[Bar]:
    """The goals of the front, judged."""
    found: list[Bar] = []

    def judge(name: str, load: str, values: Sequence[float], goal: str, unit: str) -> None:
        if values:
            failed = sum(int(each["errors"] + each["not_sent"]) for each in rounds[front][load])
            found.append(bar(name, values, goal, unit, load, failed=failed))

    for load, p99 in (("200/s", 3), ("400/s", 4)):
        judge("added-p50", load, added(rounds, front, load, "p50"), "<= 1.0", "ms")
        judge("added-p99", load, added(rounds, front, load, "p99"), f"<= {p99}", "ms")
    judge("cpu-per-call", "400/s", cpu(rounds, front, "400/s"), "<= 1.2", "ms")
    judge("cpu-per-call-llm-d", "400/s", cpu(rounds, front, "400/s"), "<= 0.99", "ms")
    for load in ("one-token streams, 25/s", "one-token streams, 200/s"):
        judge("cpu-per-stream", load, cpu(rounds, front, load), "<= 1.2", "ms")
    judge("added-1mb", "1 MB, one caller", added(rounds, front, "1 MB, one caller", "p50"), "<= 1.5", "ms")
    big = "200/s beside 8 MiB"
    judge("delay-by-8mib", big, added(rounds, front, big, "max"), "<= 20", "ms")
    judge("calls-per-core", "32 callers", [r["rate"] for r in rounds[front].get("32 callers", ())], ">= 1500", "1/s")
    chunks = "40,000 chunks/s"
    late = [
        this["p50"] / direct["p50"]
        for this, direct in zip(rounds[front].get(chunks, ()), rounds[DIRECT].get(chunks, ()), strict=False)
    ]
    judge("streams-late", chunks, late, "<= 1.05", "ratio")
    return found


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan
