"""Calls of programs with a spent budget wait here until something is added, or for so long.

A held call asks the leader again every ASK_S. It keeps its body in Envoy's memory, so a gateway holds MAX_HELD at most.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from agentserving_gateway import metrics
from agentserving_gateway.calls import Refusal
from agentserving_gateway.errors import HttpError, from_refusal

REASON = "PROGRAM_BUDGET_SPENT"
ASK_S, MAX_HELD = 1.0, 1_000


class SpentBudgets:
    """One per gateway process."""

    def __init__(self, limit_s: float, most: int = MAX_HELD) -> None:
        """`limit_s`: how long a call is held; 0 = not at all."""
        self.limit_s, self._most = limit_s, most
        # Calls that wait now.
        self.held = 0

    async def wait(self, held_s: float, refusal: Refusal) -> float:
        """Returns when a call that was held for so long should ask again, and for how long it has been held then.

        HttpError 429, in the leader's words, when it is not held any longer.
        """
        left_s = self.limit_s - held_s
        if left_s <= 0 or self.held >= self._most:
            raise _refused(refusal, held_s)
        self.held += 1
        metrics.HELD_BY_BUDGET.set(self.held)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await asyncio.sleep(min(ASK_S, left_s))
        finally:
            self.held -= 1
            metrics.HELD_BY_BUDGET.set(self.held)
        return held_s + loop.time() - began


def _refused(refusal: Refusal, held_s: float) -> HttpError:
    error = from_refusal(refusal)
    return replace(error, message=f"{error.message} (the call was held for {held_s:.0f} s)") if held_s else error
