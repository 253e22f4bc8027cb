"""What it costs to compute a preempted call's tokens again, learned from the engine's own steps. Pure.

A step that only decodes tells the base; what a step with prefill takes beyond it, by its tokens, tells the rest.
"""

from __future__ import annotations

_SMOOTHING = 0.1
# Fewer tokens than this tell more of the clock than of the prefill.
_MIN_TOKENS = 16


class PrefillCost:
    """Moving averages; `us_per_token` is 0 until a step has told."""

    def __init__(self) -> None:
        self.us_per_token = 0.0
        self._decode_us = 0.0

    def observe(self, dt_us: int, members: int, tokens: int) -> None:
        """A step of `dt_us` ran `members` requests and computed `tokens` tokens of theirs, one each when it decodes."""
        extra = tokens - members
        if extra <= 0:
            self._decode_us += (dt_us - self._decode_us) * (_SMOOTHING if self._decode_us else 1)
        elif extra >= _MIN_TOKENS:
            # Until a step has only decoded, all of it counts as prefill: rather too dear than free.
            told = max(0.0, dt_us - self._decode_us) / extra
            self.us_per_token += (told - self.us_per_token) * (_SMOOTHING if self.us_per_token else 1)


def wanted_blocks(waiting: int, running: int, running_tokens: int, block_size: int) -> int:
    """What `waiting` calls will take, each as much as a running one has in the mean: asking them all costs."""
    return waiting * (running_tokens // max(1, running) // block_size + 1)


def lost_tokens(computed: int, *, block_size: int, findable: bool, free_blocks: int, waiting_blocks: int) -> int:
    """Of `computed` tokens of a call, how many it would compute again if it gave way now.

    What it leaves behind is `findable` where prefixes are kept, all but the block that is not full; until the calls
    that wait have taken all free blocks, and then its own.
    """
    if findable and waiting_blocks <= free_blocks:
        return computed % block_size
    return computed
