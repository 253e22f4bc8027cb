"""What recomputing a preempted call's tokens costs, learned from the engine's own steps. Pure.

A decode-only step shows the base cost; what a step with prefill takes beyond it, divided by its prefill tokens, is the
cost of a token.
"""

from __future__ import annotations

# Weight of the newest step in the averages.
_SMOOTHING = 0.1
# Below this number of prefill tokens, the jitter of a step outweighs their cost.
_MIN_TOKENS = 16


class PrefillCost:
    """Moving averages; `us_per_token` is 0 until a step has been observed."""

    def __init__(self) -> None:
        self.us_per_token = 0.0
        self._decode_us = 0.0

    def observe(self, dt_us: int, members: int, tokens: int) -> None:
        """A step of `dt_us` computed `tokens` tokens of `members` requests; a decoding request computes one."""
        prefill_tokens = tokens - members
        if prefill_tokens <= 0:
            self._decode_us += (dt_us - self._decode_us) * (_SMOOTHING if self._decode_us else 1)
        elif prefill_tokens >= _MIN_TOKENS:
            # Until a decode-only step has been seen, attribute the whole step to prefill: overestimating is safer than
            # zero.
            us_per_token = max(0.0, dt_us - self._decode_us) / prefill_tokens
            self.us_per_token += (us_per_token - self.us_per_token) * (_SMOOTHING if self.us_per_token else 1)


def wanted_blocks(waiting: int, running: int, running_tokens: int, block_size: int) -> int:
    """Estimate of the blocks `waiting` calls need: each as many as a running one has on average."""
    return waiting * (running_tokens // max(1, running) // block_size + 1)


def is_overwritten(findable: bool, free_blocks: int, waiting_blocks: int) -> bool:
    """A call preempted now would recompute all its tokens when it resumes, not only those of its last, partial block.

    With prefix caching (`findable`) its full blocks are found again, until the waiting calls have used up all free
    blocks and overwrite them.
    """
    return not findable or waiting_blocks > free_blocks
