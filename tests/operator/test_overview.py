"""Rejected tickets are seen by the growth of counters; the operator may start, and engines boot, at any time."""

from __future__ import annotations

from agentserving_operator.observe.overview import REJECTIONS_SHOWN_S, Rejections


def test_only_growth_after_the_first_look_counts() -> None:
    seen = Rejections().after([("e", "boot", 5)], 0.0)
    assert seen.rejecting(0.0) == ()
    seen = seen.after([("e", "boot", 5)], 1.0)
    assert seen.rejecting(1.0) == ()
    seen = seen.after([("e", "boot", 6)], 2.0)
    assert seen.rejecting(2.0) == ("e",)


def test_rejections_are_shown_for_a_while_after_the_last_one() -> None:
    seen = Rejections().after([("e", "boot", 0)], 0.0).after([("e", "boot", 1)], 10.0)
    later = seen.after([("e", "boot", 1)], 10.0 + REJECTIONS_SHOWN_S - 1)
    assert later.rejecting(10.0 + REJECTIONS_SHOWN_S - 1) == ("e",)
    assert later.rejecting(10.0 + REJECTIONS_SHOWN_S) == ()


def test_a_counter_that_began_again_with_a_boot_counts_from_zero() -> None:
    seen = Rejections().after([("e", "first", 9)], 0.0).after([("e", "second", 2)], 1.0)
    assert seen.rejecting(1.0) == ("e",)


def test_engines_that_are_gone_are_forgotten() -> None:
    seen = Rejections().after([("e", "b", 0)], 0.0).after([("e", "b", 1)], 1.0).after([], 2.0)
    assert seen.rejecting(2.0) == ()
    assert seen.counts == {}
