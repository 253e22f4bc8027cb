"""The search for the leader among several control planes: hints, unresponsive addresses, delays."""

from __future__ import annotations

import pytest
from agentserving.transport.connection import Attempts, Settings
from agentserving.transport.errors import AgentServingError, CancelledError, UnavailableError
from agentserving.transport.leader import AVOID_S, ROUNDS, Leader, split
from hypothesis import given, settings
from hypothesis import strategies as st

A, B, C = "a:1", "b:1", "c:1"


def test_addresses_are_split_at_commas_and_an_invalid_one_is_named() -> None:
    assert split(" a:1, b:2 ,") == ("a:1", "b:2")
    with pytest.raises(ValueError, match="'nonsense' is not the address"):
        split("a:1,nonsense")
    with pytest.raises(ValueError, match="no control plane address"):
        split(",")


def test_a_hint_to_an_unknown_address_is_followed_without_delay() -> None:
    leader = Leader([A])
    assert not leader.several
    assert leader.failed(A, 0, "pod:1") == 0
    assert leader.address == "pod:1"
    assert leader.several


def test_after_an_unresponsive_address_the_next_one_is_tried() -> None:
    leader = Leader([A, B, C])
    for expected in (B, C):
        assert leader.failed(leader.address, 0) == 0
        assert leader.address == expected


def test_a_hint_to_an_unresponsive_address_is_ignored_for_a_while() -> None:
    leader = Leader([A, B])
    leader.failed(A, 0)
    leader.failed(B, 0.1, A)
    assert leader.address == B
    leader.failed(B, AVOID_S + 0.1, A)
    assert leader.address == A


def test_when_a_hinted_leader_dies_the_configured_address_is_tried_again() -> None:
    leader = Leader(["service:1"])
    leader.failed("service:1", 0, "pod:1")
    leader.found("pod:1")
    leader.failed("pod:1", 9)
    assert leader.address == "service:1"
    leader.failed("service:1", 9.1, "pod:1")
    assert leader.address == "service:1"
    leader.failed("service:1", 9.2, "pod:2")
    assert leader.address == "pod:2"


def test_delays_grow_after_all_addresses_failed_and_end_with_a_success() -> None:
    leader = Leader([A, B])
    delays = [leader.failed(leader.address, number / 10, "") for number in range(12)]
    assert delays[:2] == [0, 0]
    assert delays[2:] == sorted(delays[2:])
    assert delays[2] > 0
    assert delays[-1] == ROUNDS.max_s
    leader.found(leader.address)
    assert leader.failed(leader.address, 2, "") == 0


def test_a_failure_that_another_caller_reported_counts_once() -> None:
    leader = Leader([A, B, C])
    leader.failed(A, 0)
    assert leader.failed(A, 0) == 0
    assert leader.address == B


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([None, "", A, B, C]), st.floats(0, 1)), max_size=40), st.sampled_from([A, B, C])
)
def test_the_leader_is_found_after_any_history(history: list[tuple[str | None, float]], leads: str) -> None:
    leader, now = Leader([A, B, C]), 0.0
    for hint, elapsed_s in history:
        now += elapsed_s
        assert 0 <= leader.failed(leader.address, now, hint) <= ROUNDS.max_s
    now += AVOID_S
    for _ in range(3):
        if leader.address == leads:
            break
        now += leader.failed(leader.address, now, leads)
    assert leader.address == leads


@pytest.mark.parametrize("lost", [UnavailableError, CancelledError])
def test_a_call_that_a_departing_leader_cancelled_is_retried_only_if_that_is_safe(
    lost: type[AgentServingError],
) -> None:
    for again in (True, False):
        leader = Leader([A, B])
        attempts = Attempts(Settings(tls=None), 0.0, again=again, leader=leader)
        assert (attempts.delay_s(lost("gone"), A, 0.0) is not None) == again
        assert leader.address == B
