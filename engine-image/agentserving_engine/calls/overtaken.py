"""Cancelled calls that are not here yet: a directive is faster than a request that its gateway still sends. Pure."""

from __future__ import annotations

from collections import OrderedDict

from agentserving.contract.ids import CallId

# A request that arrives later than this was not on its way when its call was cancelled. Ids of calls that have ended
# before are remembered as well, so the number is bounded.
ON_THE_WAY_US = 60_000_000
MAX_CALLS = 16_384


class Overtaken:
    """Ids of cancelled calls, for as long as their requests may be on the way."""

    def __init__(self) -> None:
        self._until_us: OrderedDict[CallId, int] = OrderedDict()
        self._late: list[str] = []

    def cancelled(self, call_id: CallId, now_us: int) -> None:
        """No request of this call is in the engine."""
        self._until_us[call_id] = now_us + ON_THE_WAY_US
        self._until_us.move_to_end(call_id)
        if len(self._until_us) > MAX_CALLS:
            self._until_us.popitem(last=False)

    def arrived(self, call_id: CallId, request_id: str, now_us: int) -> None:
        """A request has come; it may be one of several of its call."""
        while self._until_us and next(iter(self._until_us.values())) < now_us:
            self._until_us.popitem(last=False)
        if call_id in self._until_us:
            self._late.append(request_id)

    def take_late(self) -> list[str]:
        """Requests that have come after their call was cancelled, since the last time."""
        late, self._late = self._late, []
        return late
