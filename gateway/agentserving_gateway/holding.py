"""Calls that wait for an engine while a cluster has none: engines that were scaled to zero come back for them.

A held call asks the leader again every ASK_S, under one number, and the leader counts it as demand for an engine. When
engines change it asks at once. Held calls keep their bodies in Envoy's memory, so a gateway holds MAX_HELD at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import replace

from agentserving_gateway import metrics
from agentserving_gateway.calls import Refusal
from agentserving_gateway.errors import HttpError, from_refusal

# The leader forgets a held call 5 s after it was asked.
ASK_S = 1.0
MAX_HELD = 1_000
# For a call that is not held any longer: an engine may still be loading its model.
RETRY_S = 10.0


class Holding:
    """One per gateway process."""

    def __init__(self, limit_s: float = 0.0, most: int = MAX_HELD) -> None:
        """`limit_s`: how long a call is held; 0 = not at all."""
        self.limit_s, self._most = limit_s, most
        # Calls that wait now; and how often calls have waited.
        self.held = self.asked = 0
        self._changed = asyncio.Event()
        # Numbers of this process; others begin elsewhere.
        self._next = secrets.randbits(62) + 1

    def number(self) -> int:
        """A number for a call; 0 where none is held."""
        if not self.limit_s:
            return 0
        self._next += 1
        return self._next

    def engines_changed(self) -> None:
        """An engine may have come: all held calls ask."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self) -> None:
        """Returns when engines have changed."""
        await self._changed.wait()

    async def wait(self, since_s: float, now_s: float, refusal: Refusal) -> None:
        """Returns when a call that is held since then should ask again. HttpError when it is not held any longer."""
        left_s = since_s + self.limit_s - now_s
        if left_s <= 0:
            text = f"no engine came within {self.limit_s:.0f} s"
            raise _refused(text, refusal)
        if self.held >= self._most:
            raise _refused(f"{self.held} calls wait for an engine here already", refusal)
        self.held += 1
        self.asked += 1
        metrics.HELD.set(self.held)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(ASK_S, left_s)):
                    await self._changed.wait()
        finally:
            self.held -= 1
            metrics.HELD.set(self.held)


def _refused(why: str, refusal: Refusal) -> HttpError:
    message = f"{why} ({refusal.message}): try again later"
    return replace(from_refusal(refusal), message=message, retry_after_s=RETRY_S)
