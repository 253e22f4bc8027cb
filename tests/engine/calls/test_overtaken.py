"""Cancelled calls whose requests are on the way: remembered for a while, and so many of them."""

from __future__ import annotations

from agentserving.contract.ids import CallId
from agentserving_engine.calls.overtaken import MAX_CALLS, ON_THE_WAY_US, Overtaken


def late(overtaken: Overtaken, call_id: str, now_us: int) -> bool:
    """Whether a request of the call that arrives now is late."""
    overtaken.arrived(CallId(call_id), "request", now_us)
    return overtaken.take_late() == ["request"]


def test_every_request_of_a_cancelled_call_is_late_until_none_can_be_on_the_way() -> None:
    overtaken = Overtaken()
    overtaken.cancelled(CallId("a"), 0)
    assert late(overtaken, "a", ON_THE_WAY_US)
    assert late(overtaken, "a", ON_THE_WAY_US)
    assert not late(overtaken, "b", 0)
    assert not late(overtaken, "a", ON_THE_WAY_US + 1)


def test_the_oldest_cancelled_calls_make_room() -> None:
    overtaken = Overtaken()
    for number in range(MAX_CALLS + 1):
        overtaken.cancelled(CallId(f"c{number}"), 0)
    assert not late(overtaken, "c0", 0)
    assert late(overtaken, "c1", 0)
