"""What recomputing a preempted call's tokens costs, learned from the engine's own steps. Pure.

A decode-only step shows the base cost. What steps with prefill take beyond it, divided by their prefill tokens, is the
cost of a token. Sums are divided, not steps averaged: a step of a few tokens is long for reasons of its own (its other
calls, jitter, memory traffic), and if it counted as much as one of thousands, short contexts would look twice as dear.
"""

from __future__ import annotations

from agentserving_engine.policy.kv_traits import KvTraits

# Weight of the newest step in the average of decode-only steps.
_SMOOTHING = 0.1
# The cost is an average over about that many of the newest prefill tokens: sixteen full steps of vLLM's default budget.
_WINDOW_TOKENS = 32_768


class PrefillCost:
    """Moving averages; `us_per_token` is 0 until a step has been observed."""

    def __init__(self) -> None:
        self.us_per_token = 0.0
        self._decode_us = 0.0
        self._prefill_us = self._prefill_tokens = 0.0

    def observe(self, dt_us: int, members: int, tokens: int) -> None:
        """A step of `dt_us` computed `tokens` tokens of `members` requests; a decoding request computes one."""
        prefill_tokens = tokens - members
        if prefill_tokens <= 0:
            self._decode_us += (dt_us - self._decode_us) * (_SMOOTHING if self._decode_us else 1)
            return
        # Until a decode-only step has been seen, attribute the whole step to prefill: overestimating is safer than
        # zero.
        kept = max(0.0, 1 - prefill_tokens / _WINDOW_TOKENS)
        self._prefill_us = self._prefill_us * kept + max(0.0, dt_us - self._decode_us)
        self._prefill_tokens = self._prefill_tokens * kept + prefill_tokens
        self.us_per_token = self._prefill_us / self._prefill_tokens


def wanted_blocks(waiting: int, running: int, running_tokens: int, kv: KvTraits) -> int:
    """Estimate of the blocks `waiting` calls need: each as many as a running one has on average."""
    return waiting * kv.needed(running_tokens // max(1, running))


def is_overwritten(findable: bool, free_blocks: int, waiting_blocks: int) -> bool:
    """A call preempted now would recompute all its tokens when it resumes, not only those of its last, partial block.

    With prefix caching (`findable`) its full blocks are found again, until the waiting calls have used up all free
    blocks and overwrite them.
    """
    return not findable or waiting_blocks > free_blocks
