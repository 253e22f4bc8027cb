"""Looking for the leader among several control planes: by hints, past the dead, without haste."""

from __future__ import annotations

import pytest
from agentserving.transport.connection import Attempts, Settings
from agentserving.transport.errors import AgentServingError, CancelledError, UnavailableError
from agentserving.transport.leader import AVOID_S, ROUNDS, Leader, split
from hypothesis import given, settings
from hypothesis import strategies as st

A, B, C = "a:1", "b:1", "c:1"


def test_addresses_are_split_at_commas_and_a_bad_one_is_named() -> None:
    assert split(" a:1, b:2 ,") == ("a:1", "b:2")
    with pytest.raises(ValueError, match="'nonsense' is not the address"):
        split("a:1,nonsense")
    with pytest.raises(ValueError, match="no control plane address"):
        split(",")


def test_a_hint_is_followed_at_once_though_it_was_not_known_before() -> None:
    leader = Leader([A])
    assert not leader.several
    assert leader.failed(A, 0, "pod:1") == 0
    assert leader.address == "pod:1"
    assert leader.several


def test_one_that_does_not_answer_gives_way_to_the_next() -> None:
    leader = Leader([A, B, C])
    for wanted in (B, C):
        assert leader.failed(leader.address, 0) == 0
        assert leader.address == wanted


def test_a_hint_to_one_that_just_did_not_answer_is_not_followed_until_it_may_be_back() -> None:
    leader = Leader([A, B])
    leader.failed(A, 0)
    leader.failed(B, 0.1, A)
    assert leader.address == B
    leader.failed(B, AVOID_S + 0.1, A)
    assert leader.address == A


def test_a_leader_that_was_named_and_dies_is_looked_for_behind_the_address_that_was_given() -> None:
    leader = Leader(["service:1"])
    leader.failed("service:1", 0, "pod:1")
    leader.found("pod:1")
    leader.failed("pod:1", 9)
    assert leader.address == "service:1"
    leader.failed("service:1", 9.1, "pod:1")
    assert leader.address == "service:1"
    leader.failed("service:1", 9.2, "pod:2")
    assert leader.address == "pod:2"


def test_who_has_asked_all_waits_longer_each_time_and_not_at_all_after_a_success() -> None:
    leader = Leader([A, B])
    delays = [leader.failed(leader.address, number / 10, "") for number in range(12)]
    assert delays[:2] == [0, 0]
    assert delays[2:] == sorted(delays[2:])
    assert delays[2] > 0
    assert delays[-1] == ROUNDS.max_s
    leader.found(leader.address)
    assert leader.failed(leader.address, 2, "") == 0


def test_what_another_thread_has_learnt_already_counts_once() -> None:
    leader = Leader([A, B, C])
    leader.failed(A, 0)
    assert leader.failed(A, 0) == 0
    assert leader.address == B


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([None, "", A, B, C]), st.floats(0, 1)), max_size=40), st.sampled_from([A, B, C])
)
def test_whatever_happened_before_one_that_leads_is_found(past: list[tuple[str | None, float]], leads: str) -> None:
    leader, now = Leader([A, B, C]), 0.0
    for hint, passed in past:
        now += passed
        assert 0 <= leader.failed(leader.address, now, hint) <= ROUNDS.max_s
    now += AVOID_S
    for _ in range(3):
        if leader.address == leads:
            break
        now += leader.failed(leader.address, now, leads)
    assert leader.address == leads


@pytest.mark.parametrize("lost", [UnavailableError, CancelledError])
def test_a_call_that_a_leaving_leader_cut_off_is_made_again_only_if_that_is_safe(lost: type[AgentServingError]) -> None:
    for again in (True, False):
        leader = Leader([A, B])
        attempts = Attempts(Settings(tls=None), 0.0, again=again, leader=leader)
        assert (attempts.delay_s(lost("gone"), A, 0.0) is not None) == again
        assert leader.address == B
