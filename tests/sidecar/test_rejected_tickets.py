"""Rejected tickets are logged, and not once per ticket."""

from __future__ import annotations

from agentserving_sidecar.rejected_tickets import LOG_AGAIN_S, RejectedTickets
from structlog.testing import capture_logs


def test_rejected_tickets_are_logged_once_a_minute_with_their_number_and_what_to_look_at() -> None:
    rejected = RejectedTickets()
    with capture_logs() as lines:
        assert not rejected.count(0, 0.0)
        assert rejected.count(3, 1.0)
        assert not rejected.count(40, 2.0)
        assert rejected.count(41, 1.0 + LOG_AGAIN_S)
        assert not rejected.count(41, 1000.0)
    assert [line["rejected"] for line in lines] == [3, 38]
    assert "clock" in lines[0]["event"]


def test_an_engine_that_boots_counts_from_zero() -> None:
    rejected = RejectedTickets()
    rejected.count(5, 0.0)
    assert not rejected.count(0, 100.0)
    assert rejected.count(2, 200.0)
