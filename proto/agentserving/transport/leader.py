"""Which of several control planes to call. Pure: the time is an argument, in seconds of any monotonic clock.

One of them leads; the others name it (a hint) or say that there is no leader at the moment. A control plane that does
not respond is avoided for a while, even if others name it: followers name a dead leader until its lease expires. The
configured addresses may be the whole list, or one address that leads to any of them, such as a Service's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from agentserving.transport.backoff import Backoff

# Shorter than a lease, and longer than it takes to notice that an address does not respond.
AVOID_S = 2.0
# Between rounds over all addresses. The caller adds the jitter.
ROUNDS = Backoff(first_s=0.05, max_s=0.5, jitter=0.0)
_ADDRESS = re.compile(r"[A-Za-z0-9._:%\[\]-]+:[0-9]{1,5}")


def is_address(text: str) -> bool:
    """True for host:port. False for anything else that gRPC would dial, such as unix:PATH or a URL."""
    return _ADDRESS.fullmatch(text) is not None and int(text.rpartition(":")[2]) <= 65535


def split(text: str) -> tuple[str, ...]:
    """Addresses from a comma-separated list. ValueError names the one that is not host:port."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for address in found:
        if not is_address(address):
            raise ValueError(f"{address!r} is not the address of a control plane: expected host:port")
    if not found:
        raise ValueError("no control plane address: expected host:port, or several separated by commas")
    return found


class Leader:
    """Searches for the leader. `address` is the one to try next; report the result to `found` or `failed`."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.known = tuple(addresses)
        self.address = self.known[0]
        self._at = 0
        self._failures = 0
        self._avoid_until_s: dict[str, float] = {}

    @property
    def several(self) -> bool:
        """True when there is, or may be, another control plane to try."""
        return len(self.known) > 1 or self.address not in self.known

    def found(self, address: str) -> None:
        """The control plane at `address` leads."""
        self._failures = 0
        self._avoid_until_s.pop(address, None)

    def failed(self, address: str, now_s: float, hint: str | None = None) -> float:
        """The control plane at `address` does not respond (`hint` None), or follows the one that it names ("" = none).

        Returns how many seconds to wait before trying `address`, which may have changed.
        """
        if address != self.address:
            # Another caller has already moved on.
            return 0.0
        self._avoid_until_s = {each: until for each, until in self._avoid_until_s.items() if until > now_s}
        if hint is None:
            self._avoid_until_s[address] = now_s + AVOID_S
        self._failures += 1
        self.address = hint if hint and hint != address and not self._avoided(hint, now_s) else self._next(now_s)
        # One try for each known address and one for a hint; only then wait.
        return ROUNDS.delay_s(self._failures - len(self.known))

    def _avoided(self, address: str, now_s: float) -> bool:
        return self._avoid_until_s.get(address, now_s) > now_s

    def _next(self, now_s: float) -> str:
        count = len(self.known)
        order = [(self._at + step) % count for step in range(1, count + 1)]
        self._at = next((at for at in order if not self._avoided(self.known[at], now_s)), order[0])
        return self.known[self._at]
