"""What the end of an exchange says of its call and its engines."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving_gateway.calls import Ending
from agentserving_gateway.envoy import names
from agentserving_gateway.exchange_log import envoy_access_log_pb2 as pb
from agentserving_gateway.exchange_log.service import exchange_of
from agentserving_gateway.exchange_log.verdict import Exchange, ending_of, failed_engines

A, B = "10.0.0.1:1", "[::1]:2"


def exchange(**chosen: Any) -> Exchange:
    return Exchange(
        **{"call_id": "c", "status": 200, "engine_failed": False, "client_left": False, "was_sent": True, **chosen}
    )


@pytest.mark.parametrize(
    ("chosen", "ending"),
    [
        ({}, None),
        ({"status": 204}, None),
        ({"status": 301}, Ending.REJECTED),
        ({"status": 400}, Ending.REJECTED),
        ({"status": 429}, Ending.REJECTED),
        ({"status": 500}, Ending.FAILED),
        ({"status": 503, "engine_failed": True}, Ending.FAILED),
        ({"status": 200, "engine_failed": True}, Ending.FAILED),
        ({"status": 0}, Ending.FAILED),
        ({"status": 0, "client_left": True}, Ending.CANCELLED),
        ({"status": 200, "client_left": True}, Ending.CANCELLED),
        ({"status": 200, "client_left": True, "engine_failed": True}, Ending.CANCELLED),
    ],
)
def test_an_exchange_says_how_its_call_ended(chosen: dict[str, Any], ending: Ending | None) -> None:
    assert ending_of(exchange(**chosen)) is ending


@pytest.mark.parametrize(
    ("chosen", "failed"),
    [
        ({"addresses": (A, B), "last": A}, ()),
        ({"addresses": (A, B), "last": B, "attempts": 2}, (A,)),
        ({"addresses": (A, B), "last": B, "attempts": 2, "engine_failed": True}, (A, B)),
        ({"addresses": (A, B), "last": A, "engine_failed": True}, (A,)),
        ({"addresses": (A, A), "last": A, "attempts": 2}, ()),
        ({"addresses": (A, A), "last": A, "attempts": 2, "engine_failed": True}, (A,)),
        ({"addresses": (), "last": "", "engine_failed": True}, ()),
        ({"addresses": (), "last": A, "attempts": 2}, ()),
    ],
)
def test_engines_that_broke_an_exchange_are_known(chosen: dict[str, Any], failed: tuple[str, ...]) -> None:
    assert failed_engines(exchange(**chosen)) == failed


def test_an_entry_of_envoy_is_read() -> None:
    entry = pb.Entry()
    entry.request.request_headers.update({names.CALL_ID: "p.1.0", names.ENDPOINTS: f"{A},{B}"})
    entry.response.response_code.value = 502
    common = entry.common_properties
    common.upstream_remote_address.socket_address.address = "::1"
    common.upstream_remote_address.socket_address.port_value = 2
    common.upstream_request_attempt_count = 2
    common.response_flags.upstream_connection_termination = True
    assert exchange_of(entry) == Exchange(
        call_id="p.1.0", status=502, engine_failed=True, client_left=False, was_sent=False, addresses=(A, B), last=B,
        attempts=2,
    )  # fmt: skip
    common.time_to_first_upstream_tx_byte.nanos = 1
    assert exchange_of(entry).was_sent


def test_an_empty_entry_is_no_error() -> None:
    assert ending_of(exchange_of(pb.Entry())) is Ending.FAILED
