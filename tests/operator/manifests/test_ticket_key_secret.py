"""Ticket keys are valid for engines, are mounted where pods expect them, and rotate without rejecting a ticket."""

from __future__ import annotations

import base64
import datetime
from pathlib import Path

import pytest
from agentserving.contract.signatures import MIN_SECRET_BYTES, public_bytes
from agentserving.contract.ticket_keys import TicketKeys as PodKeys
from agentserving_controlplane.calls import TICKET_LIFETIME_S
from agentserving_operator.manifests import Manifest
from agentserving_operator.manifests.engine_pod import (
    GATEWAY_PUBLIC_KEY_FILE,
    KEY_DIR,
    KEY_FILE,
    PUBLIC_KEY_FILE,
)
from agentserving_operator.manifests.engine_statefulset import engine_statefulset
from agentserving_operator.manifests.gateway_deployment import GATEWAY_KEY_FILE, gateway_deployment
from agentserving_operator.manifests.ticket_key_secret import (
    KEY_BYTES,
    TicketKeys,
    has_all_files,
    rotated,
    ticket_key_secret,
    ticket_keys_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from support.operator_objects import make_cluster, pod_spec

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def test_the_key_is_where_pods_look_for_it() -> None:
    cluster = make_cluster()
    secret = ticket_key_secret(cluster, TicketKeys(b"k" * KEY_BYTES))
    (volume,) = [v for v in pod_spec(engine_statefulset(cluster))["volumes"] if v["name"] == "ticket-key"]
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    mounted = [item["key"] for item in volume["secret"]["items"]]
    assert {name.split(".")[0] for name in mounted} == {"public", "gateway-public"}
    assert f"{KEY_DIR}/{mounted[0]}" == PUBLIC_KEY_FILE
    assert base64.b64decode(secret["data"]["public"]) == public_bytes(b"k" * KEY_BYTES)
    assert f"{KEY_DIR}/{next(iter(secret['data']))}" == KEY_FILE
    assert base64.b64decode(secret["data"]["key"]) == b"k" * KEY_BYTES


@pytest.mark.parametrize("known", [("key",), ("key", "public")], ids=["shared keys", "no keys of gateways"])
def test_a_secret_from_before_some_keys_gets_them(known: tuple[str, ...]) -> None:
    keys = TicketKeys(b"k" * KEY_BYTES, next=b"n" * KEY_BYTES)
    secret = ticket_key_secret(make_cluster(), keys)
    assert has_all_files(secret)
    secret["data"] = {name: data for name, data in secret["data"].items() if name.split(".")[0] in known}
    assert ticket_keys_of(secret) == keys
    assert not has_all_files(secret)


def test_gateways_sign_with_keys_of_their_own_that_engines_have(tmp_path: Path) -> None:
    cluster = make_cluster()
    secret = ticket_key_secret(cluster, TicketKeys(b"k" * KEY_BYTES, next=b"n" * KEY_BYTES))
    signing = read_by_a_pod(secret, tmp_path / "gateway", GATEWAY_KEY_FILE)
    verifying = read_by_a_pod(secret, tmp_path / "engine", GATEWAY_PUBLIC_KEY_FILE)
    assert tuple(map(public_bytes, signing)) == verifying
    assert not {b"k" * KEY_BYTES, b"n" * KEY_BYTES} & set(signing)
    (volume,) = [v for v in pod_spec(gateway_deployment(cluster))["volumes"] if v["name"] == "ticket-key"]
    assert {item["key"].split(".")[0] for item in volume["secret"]["items"]} == {"gateway-key"}


def test_the_key_is_long_enough_for_its_readers() -> None:
    assert KEY_BYTES >= MIN_SECRET_BYTES


def read_by_a_pod(secret: Manifest, directory: Path, file: str = KEY_FILE) -> tuple[bytes, ...]:
    """Read by the code of pods, from files as kubelet mounts them."""
    directory.mkdir()
    for name, data in secret["data"].items():
        (directory / name).write_bytes(base64.b64decode(data))
    return PodKeys(directory / Path(file).name, lambda content: content)()


Story = list[tuple[datetime.datetime, TicketKeys]]


def story(requests: dict[int, str], minutes: int = 120) -> Story:
    """The keys at each minute; requests by their minute."""
    keys, request, made = TicketKeys(b"0" * KEY_BYTES), "", 0

    def fresh(count: int) -> bytes:
        nonlocal made
        made += 1
        return str(made).encode() * count

    found = []
    for minute in range(minutes):
        now = NOW + datetime.timedelta(minutes=minute)
        request = requests.get(minute, request)
        keys = rotated(keys, request, now, fresh)
        found.append((now, keys))
    return found


def test_pods_that_read_keys_minutes_apart_verify_each_others_tickets(tmp_path: Path) -> None:
    late = datetime.timedelta(minutes=5)
    steps = story({3: "a", 50: "b"})
    secrets = [(now, ticket_key_secret(make_cluster(), keys)) for now, keys in steps]
    signing = [(now, read_by_a_pod(secret, tmp_path / f"{now} signs")[0]) for now, secret in secrets]
    verifying = [(now, read_by_a_pod(secret, tmp_path / str(now), PUBLIC_KEY_FILE)) for now, secret in secrets]
    assert {key[:1] for _, key in signing} == {b"0", b"1", b"2"}
    for signed_at, key in signing:
        for verified_at, keys in verifying:
            if abs(verified_at - signed_at) <= late:
                assert public_bytes(key) in keys, (signed_at, verified_at)


def test_the_previous_key_verifies_for_a_tickets_life_and_no_longer() -> None:
    steps = story({0: "a"})
    life = datetime.timedelta(seconds=TICKET_LIFETIME_S)
    last_signed = max(now for now, keys in steps if keys.key[:1] == b"0")
    known = [now for now, keys in steps if b"0" * KEY_BYTES in (keys.key, keys.previous)]
    assert max(known) > last_signed + life
    assert steps[-1][1] == TicketKeys(b"1" * KEY_BYTES, request="a", since=steps[-1][1].since)


def test_a_request_during_a_rotation_is_served_after_it() -> None:
    assert {keys.key[:1] for _, keys in story({0: "a", 5: "a"})} == {b"0", b"1"}
    assert {keys.key[:1] for _, keys in story({0: "a", 5: "b", 7: "c"})} == {b"0", b"1", b"2"}
    assert {keys.key[:1] for _, keys in story({0: "a", 50: ""})} == {b"0", b"1"}
    assert {keys.key[:1] for _, keys in story({})} == {b"0"}


@given(st.dictionaries(st.integers(0, 119), st.sampled_from(["", "a", "b", "c"]), max_size=8))
@settings(deadline=None)
def test_every_step_survives_a_round_trip(requests: dict[int, str]) -> None:
    for _, keys in story(requests):
        assert ticket_keys_of(ticket_key_secret(make_cluster(), keys)) == keys
        assert keys.next is None or keys.previous is None


def test_a_secret_without_a_key_is_left_alone() -> None:
    for data in ({}, {"key": "?"}, None):
        assert ticket_keys_of({"metadata": {}, "data": data}) is None
