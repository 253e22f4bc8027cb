"""What a token of prefill costs on this engine, learned from its own steps. Pure.

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
        elif extra >= _MIN_TOKENS and self._decode_us:
            told = max(0.0, dt_us - self._decode_us) / extra
            self.us_per_token += (told - self.us_per_token) * (_SMOOTHING if self.us_per_token else 1)
