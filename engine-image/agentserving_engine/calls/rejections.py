"""Tickets that were rejected: counts by reason, and the log lines about them. Pure."""

from __future__ import annotations

from collections import Counter

# One line per reason and minute: a wrong clock or key rejects every call.
LOG_INTERVAL_US = 60_000_000

_ADVICE = {
    "expired": "check the clocks of this node and of the control plane's",
    "forged": "this engine does not have the public key of the control plane's ticket key",
    "wrong_engine": "the gateway sent a call to another engine than the control plane chose",
    "malformed": "a client sets X-Session-ID, or a proxy changes it",
    "wrong_boot": "this engine has restarted since the ticket was made: the call is lost, its client tries again",
    "replayed": "a client sends the ticket of another request",
}


class Rejections:
    """Requests with a rejected ticket are refused, or served as unmanaged calls."""

    def __init__(self) -> None:
        self.by_reason: Counter[str] = Counter()
        self._logged: dict[str, tuple[int, int]] = {}
        self._lines: list[str] = []

    @property
    def total(self) -> int:
        """Rejected tickets since boot."""
        return self.by_reason.total()

    def add(self, reason: str, now_us: int, *, expired_for_s: float = 0.0) -> None:
        """A ticket was rejected; `expired_for_s` only for `expired`."""
        self.by_reason[reason] += 1
        count = self.by_reason[reason]
        at_us, before = self._logged.get(reason, (now_us - LOG_INTERVAL_US, 0))
        if now_us - at_us < LOG_INTERVAL_US:
            return
        self._logged[reason] = now_us, count
        skew = f" for {expired_for_s:.0f} s" if reason == "expired" else ""
        self._lines.append(
            f"ticket rejected: {reason}{skew} ({count - before} since the last such line): the call is "
            f"unmanaged; {_ADVICE.get(reason, '')}"
        )

    def take_lines(self) -> list[str]:
        """Log lines that have not been taken yet."""
        if not self._lines:
            return []
        lines, self._lines = self._lines, []
        return lines
