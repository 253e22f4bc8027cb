"""Says in the log that the engine rejects tickets: its calls then run unmanaged, and nothing else shows it."""

from __future__ import annotations

import structlog

log = structlog.get_logger()

LOG_AGAIN_S = 60.0


class RejectedTickets:
    """Follows the engine's counter."""

    def __init__(self) -> None:
        self._known = 0
        self._logged_s: float | None = None

    def count(self, total: int, now_s: float) -> bool:
        """`total`: rejected since the engine's boot. True when a line was logged; at most one a minute."""
        more, is_silent = total - self._known, self._logged_s is not None and now_s - self._logged_s < LOG_AGAIN_S
        if more < 0:
            # Another boot.
            self._known = more = 0
        if not more or is_silent:
            return False
        self._known, self._logged_s = total, now_s
        log.warning(
            "the engine rejects tickets, so these calls are not managed or charged: they are expired when the clock of "
            "this node and the control plane's differ by minutes, or forged when the ticket keys differ",
            rejected=more,
        )
        return True
