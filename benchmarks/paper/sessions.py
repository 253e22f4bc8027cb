"""Recorded coding-agent sessions as programs: the order of calls is inferred from their times."""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from agentserving.contract.ids import ProgramId
from agentserving_replay.traces.trace import Call, Program
from agentserving_replay.workloads import poisson

FILE = Path(__file__).parent / "data" / "coding_agent_sessions.csv.gz"
# The context of Llama 3.1, with room for the output.
MAX_PROMPT, MAX_OUTPUT = 124_000, 4_000
# Longer pauses, such as nights, are shortened: a session's KV is evicted after ten minutes as well as after ten hours.
MAX_GAP_S = 600.0


def session(rows: Iterable[Mapping[str, str]]) -> tuple[Call, ...]:
    """The calls of one program from its rows, in order of their start. A sub-agent is a thread its caller waits for."""
    calls: list[Call] = []
    ends: list[float] = []
    newest: dict[str, int] = {}
    for row in rows:
        start_s, depth, at = float(row["start_s"]), row["depth"], len(calls)
        before = newest.get(depth, newest.get("0", -1))
        parents = {before} if before >= 0 else set()
        if depth == "0":
            # Sub-agents that have ended since: this call uses their results.
            parents |= {index for other, index in newest.items() if other != "0" and ends[index] <= start_s}
        extends = newest.get(depth, -1)
        prompt = min(int(row["input_tokens"]), MAX_PROMPT)
        known = calls[extends].prompt_tokens + calls[extends].output_tokens if extends >= 0 else 0
        shared = min(int(row["prefix_hit_tokens"]), known, prompt - 1)
        gap_s = start_s - max(ends[parent] for parent in parents) if parents else 0.0
        output = max(1, min(int(row["output_tokens"]), MAX_OUTPUT))
        calls.append(
            Call(
                prompt_tokens=prompt,
                output_tokens=output,
                parents=tuple(sorted(parents)),
                gap_s=min(MAX_GAP_S, max(0.0, gap_s)),
                extends=extends if shared > 0 else -1,
                shared_tokens=max(0, shared) if extends >= 0 else 0,
                thread=depth,
            )
        )
        ends.append(start_s + float(row["api_s"] or 0))
        newest[depth] = at
    return tuple(calls)


@cache
def sessions() -> tuple[tuple[Call, ...], ...]:
    """All sessions of the file, in its order."""
    programs: dict[str, list[dict[str, str]]] = {}
    with gzip.open(FILE, "rt") as lines:
        for row in csv.DictReader(lines):
            programs.setdefault(row["program"], []).append(row)
    all_sessions = [session(sorted(rows, key=lambda row: float(row["start_s"]))) for rows in programs.values()]
    return tuple(calls for calls in all_sessions if calls)


def coding_agents(seed: int, rate_per_s: float, count: int) -> list[Program]:
    """`count` sessions in an order drawn by `seed`; none repeats before all have been used."""
    rng = random.Random(f"coding-{seed}")
    known, arrivals = sessions(), poisson(rng, rate_per_s)
    order: list[int] = []
    programs = []
    for number in range(count):
        if not order:
            order = rng.sample(range(len(known)), len(known))
        programs.append(Program(ProgramId(f"coding-{number}"), "coding", next(arrivals), known[order.pop()]))
    return programs
