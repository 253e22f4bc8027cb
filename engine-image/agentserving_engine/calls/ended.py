"""Calls that have ended: what a late request or a replayed ticket is recognised by. Pure."""

from __future__ import annotations

from collections import OrderedDict

from agentserving.contract.ids import CallId

# At least as many calls as can end within the lifetime of a ticket.
MAX_ENDED = 262_144


class EndedCalls:
    """Base request ids of the newest ended calls; the oldest is forgotten first."""

    def __init__(self, limit: int = MAX_ENDED) -> None:
        self._limit = limit
        self._base_ids: OrderedDict[CallId, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._base_ids)

    def add(self, call_id: CallId, base_id: str) -> None:
        """A call has ended; `base_id` is what the ids of all its requests have in common."""
        self._base_ids[call_id] = base_id
        self._base_ids.move_to_end(call_id)
        if len(self._base_ids) > self._limit:
            self._base_ids.popitem(last=False)

    def base_id(self, call_id: CallId) -> str | None:
        """Base id of an ended call; None when it has not ended here or is forgotten."""
        return self._base_ids.get(call_id)
