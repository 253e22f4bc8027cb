"""Which of several control planes to speak to. Pure: the time is an argument, in seconds of any clock that only grows.

One of them leads; the others say who it is (a hint), or that there is none just now. One that does not answer is not
gone to for a while, whoever names it: followers name a dead leader until its lease has run out. What is known may be
the whole list, or one address behind which any of them may be found, as a Service's.
"""

from __future__ import annotations

from collections.abc import Sequence

# Less than a lease, and more than it takes to notice that nobody answers.
SHUNNED_S = 2.0
FIRST_DELAY_S, MAX_DELAY_S = 0.05, 0.5


def split(text: str) -> tuple[str, ...]:
    """Addresses from a list with commas. ValueError for what is no host:port."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for address in found:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"{address!r} is not an address of a control plane: write host:port")
    if not found:
        raise ValueError("no address of a control plane is given: write host:port, or several with commas between")
    return found


class Leader:
    """Where the leader is looked for. `address` is the one to try; tell what came of it by `found` or `failed`."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.known = tuple(addresses)
        self.address = self.known[0]
        self._at = 0
        self._failures = 0
        self._shunned_until_s: dict[str, float] = {}

    @property
    def several(self) -> bool:
        """True when there is, or may be, another one to go to."""
        return len(self.known) > 1 or self.address not in self.known

    def found(self, address: str) -> None:
        """It leads."""
        self._failures = 0
        self._shunned_until_s.pop(address, None)

    def failed(self, address: str, now_s: float, hint: str | None = None) -> float:
        """It does not answer (None), or does not lead and names who does ("" = nobody). Gives the seconds to wait."""
        if address != self.address:
            # Somebody else has been told before us, and moved on.
            return 0.0
        if hint is None:
            self._shunned_until_s[address] = now_s + SHUNNED_S
        self._failures += 1
        self.address = hint if hint and hint != address and not self._shunned(hint, now_s) else self._next(now_s)
        # Everybody known and one who was named: whoever has asked them all waits.
        free = len(self.known) + 1
        if self._failures < free:
            return 0.0
        return min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._failures - free, 10))

    def _shunned(self, address: str, now_s: float) -> bool:
        return self._shunned_until_s.get(address, now_s) > now_s

    def _next(self, now_s: float) -> str:
        count = len(self.known)
        order = [(self._at + step) % count for step in range(1, count + 1)]
        self._at = next((at for at in order if not self._shunned(self.known[at], now_s)), order[0])
        return self.known[self._at]
