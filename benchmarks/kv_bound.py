"""How many tokens a second any policy could give agents whose contexts do not fit: a bound, from a trace.

A fluid model of one engine that knows every tool time: `rate` calls a second arrive, all contexts are whole, no call
queues, and a context is kept during a gap exactly if that costs less than to compute it again, at one price of memory
times time (Lagrange: no other choice of whole contexts keeps less for the same work). What is left out would lower the
bound: queues, bursts, blocks, unknown gaps. All calls of the trace count alike, as if programs began all the time; a
run that begins with all programs at once has smaller contexts. Bounds are

- memory: rate x (context x time in the engine + kept contexts x their gaps) <= the KV of all tiers;
- the GPU: prompts take their time alone, and decode steps, shared by the calls that decode, take the rest.

Host memory is counted as if it were the GPU's: loading is free. Usage: python -m benchmarks.kv_bound
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from agentserving_replay.traces.trace import Call
from agentserving_simulator.cost_model import BLOCK_SIZE, MODELS, CostModel, cost_model

from benchmarks.paper.sessions import sessions

MAX_NUM_SEQS = 48
Values = npt.NDArray[np.float64]
# Prices tried: seconds of the GPU that a token kept for a second may save.
PRICES = (0.0, *np.logspace(-9, 1, 61))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """`tokens_per_s` generated; the share of the time that prompts take, and of calls that compute their context."""

    tokens_per_s: float
    prompt_share: float
    recomputing: float


class Trace:
    """Arrays over the calls of all programs; tokens and seconds."""

    def __init__(self, programs: list[tuple[Call, ...]]) -> None:
        rows = [row for calls in programs for row in _rows(calls)]
        self.prompt, self.shared, self.output, self.gap, self.next_gap = np.array(rows, dtype=float).T

    @property
    def context(self) -> Values:
        """Tokens that a call leaves behind."""
        total: Values = self.prompt + self.output
        return total


def _rows(calls: tuple[Call, ...]) -> list[tuple[float, ...]]:
    """(prompt, shared tokens, output, gap before it if it shares, shortest gap after it; 0 after the last)."""
    after: dict[int, float] = {}
    for call in calls:
        for parent in call.parents:
            after[parent] = min(after.get(parent, call.gap_s), call.gap_s)
    return [
        (
            call.prompt_tokens,
            call.shared_tokens,
            call.output_tokens,
            call.gap_s if call.shared_tokens else 0.0,
            after.get(index, 0.0),
        )
        for index, call in enumerate(calls)
    ]


def prefill_s(cost: CostModel, tokens: Values, context: Values) -> Values:
    """Seconds to compute `tokens` prompt tokens after `context` tokens."""
    pairs = tokens * (context + tokens / 2)
    seconds: Values = (cost.compute_us_per_token * tokens + cost.attention_us_per_pair * pairs) / 1e6
    return seconds


def bound(trace: Trace, cost: CostModel, kv_tokens: float) -> Bound:
    """The best over all prices of memory."""
    return max((_at(trace, cost, kv_tokens, price) for price in PRICES), key=lambda each: each.tokens_per_s)


def _at(trace: Trace, cost: CostModel, kv_tokens: float, price: float) -> Bound:
    none = np.zeros_like(trace.prompt)
    prompt_s = prefill_s(cost, trace.prompt - trace.shared, trace.shared)
    again_s = prefill_s(cost, trace.shared, none)
    lost = (trace.shared > 0) & (trace.gap * trace.shared * price > again_s)
    kept = trace.next_gap * trace.context * price <= prefill_s(cost, trace.context, none)
    kept_s = (trace.context * trace.next_gap * kept).mean()
    busy_s = (prompt_s + lost * again_s).mean()
    output, depth = trace.output.mean(), (trace.prompt * trace.output).sum() / trace.output.sum()

    def fits(rate: float) -> bool:
        rest = 1 - rate * busy_s
        if rest <= 0:
            return False
        # Calls that decode: rate x output x the time of a step, which grows with them.
        each = rate * output / rest / 1e6
        if each * cost.kv_us_per_token * depth >= 1:
            return False
        decoding = each * (cost.weights_us + cost.base_us) / (1 - each * cost.kv_us_per_token * depth)
        if decoding > MAX_NUM_SEQS:
            return False
        step_s = (cost.weights_us + cost.base_us + cost.kv_us_per_token * decoding * depth) / rest / 1e6
        held = (trace.context * (prompt_s + lost * again_s + trace.output * step_s)).mean() + kept_s
        return bool(rate * held <= kv_tokens)

    low, high = 0.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return Bound(tokens_per_s=low * output, prompt_share=low * busy_s, recomputing=lost.mean())


def main() -> None:
    """Prints the bounds for the recorded coding sessions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", default="a100-80gb")
    parser.add_argument("--model", default="llama-3.1-8b")
    arguments = parser.parse_args()
    cost, trace = cost_model(arguments.gpu, arguments.model), Trace(list(sessions()))
    bytes_per_token = MODELS[arguments.model].kv_bytes_per_token
    print("| host memory, GiB | tokens/s at most | prompts' share of the GPU | contexts computed again |")
    print("|---|---|---|---|")
    for gib in (0, 100, 400):
        kv = cost.num_blocks * BLOCK_SIZE + gib * 2**30 / bytes_per_token
        best = bound(trace, cost, kv)
        print(f"| {gib} | {best.tokens_per_s:.1f} | {best.prompt_share:.0%} | {best.recomputing:.0%} |")


if __name__ == "__main__":
    main()
