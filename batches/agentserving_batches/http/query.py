"""Parameters of lists. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from agentserving_batches.errors import RefusedError


def limit_of(query: Mapping[str, str], default: int, most: int) -> int:
    """How many a page has. RefusedError."""
    text = query.get("limit", "") or str(default)
    if not text.isdecimal() or not 1 <= int(text[:9]) <= most:
        raise RefusedError(400, f"limit is {text[:20]!r}, and must be 1 to {most}", "invalid_limit", "limit")
    return int(text)


def is_newest_first(query: Mapping[str, str]) -> bool:
    """The order of a list, newest first by default. RefusedError for any but asc and desc."""
    order = query.get("order", "") or "desc"
    if order not in ("asc", "desc"):
        raise RefusedError(400, f"order is {order[:20]!r}, and must be asc or desc", "invalid_order", "order")
    return order == "desc"
