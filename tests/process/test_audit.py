"""The audit log outside the control plane: each change and refusal is said, and a flood of refusals cannot fill it."""

from __future__ import annotations

from typing import Any

from agentserving_process.audit import LINES_PER_MINUTE, MAX_CHARS, MAX_KNOWN, QUIET_S, Refusals, changed
from structlog.testing import capture_logs


def refuse(refusals: Refusals, now_s: float, peer: str = "10.0.0.1", **fields: str) -> None:
    given = {"outcome": "UNAUTHENTICATED", "reason": "UNKNOWN_KEY", "method": "/v1/messages", "peer": peer, **fields}
    refusals.refused(now_s, **given)


def test_a_refusal_is_a_line_and_equal_ones_are_counted_by_the_next() -> None:
    refusals = Refusals()
    with capture_logs() as logs:
        for second in range(50):
            refuse(refusals, second)
        refuse(refusals, 10, "10.0.0.2")
        refuse(refusals, 10, reason="KEY_REVOKED", who="k3v9x0qa")
        refuse(refusals, QUIET_S)
    said = [(line["peer"], line["reason"], line.get("repeated")) for line in logs]
    assert said == [
        ("10.0.0.1", "UNKNOWN_KEY", None), ("10.0.0.2", "UNKNOWN_KEY", None), ("10.0.0.1", "KEY_REVOKED", None),
        ("10.0.0.1", "UNKNOWN_KEY", 49),
    ]  # fmt: skip
    assert {line["event"] for line in logs} == {"audit"}


def test_a_flood_from_many_addresses_is_bounded_and_everything_is_counted() -> None:
    refusals = Refusals()
    with capture_logs() as logs:
        for number in range(100_000):
            refuse(refusals, number / 1000, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        refuse(refusals, 10_000)
    assert len(logs) <= LINES_PER_MINUTE + 100 * LINES_PER_MINUTE / 60 + 1
    assert len(logs) + sum(line.get("omitted", 0) + line.get("repeated", 0) for line in logs) == 100_001


def test_what_is_remembered_is_bounded_and_what_is_forgotten_is_counted() -> None:
    refusals, now = Refusals(), 0.0
    with capture_logs() as logs:
        for number in range(MAX_KNOWN + 10):
            now += 60 / LINES_PER_MINUTE
            refuse(refusals, now, f"peer-{number}")
            refuse(refusals, now, f"peer-{number}")
    assert len(refusals._known) == MAX_KNOWN
    assert sum(line.get("omitted", 0) for line in logs) == 10


def test_long_texts_of_strangers_are_cut_and_empty_fields_left_out() -> None:
    with capture_logs() as logs:
        refuse(Refusals(), 0.0, peer="x" * 10_000, who="")
        changed(role="operator", method="kubernetes.apply", about="Secret/" + "n" * 1000)
    refused, done = logs
    assert (len(refused["peer"]), "who" in refused) == (MAX_CHARS, False)
    assert (len(done["object"]), done["outcome"]) == (MAX_CHARS, "OK")


def test_fields_never_collide() -> None:
    refusals = Refusals()
    lines: list[Any] = []
    with capture_logs() as logs:
        refuse(refusals, 0.0, peer="a", who="b")
        refuse(refusals, 0.0, peer="b", who="a")
        lines += logs
    assert len(lines) == 2
