"""Which requests the front knows."""

from __future__ import annotations

import pytest
from agentserving_gateway.routes import ROUTES, SHOWN, Kind, is_response_id, response_id_of, route_of, split_program


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v1/chat/completions", Kind.CALL),
        ("POST", "/v1/messages", Kind.CALL),
        ("POST", "/v1/responses", Kind.CALL),
        ("POST", "/v1/messages/count_tokens", Kind.READ),
        ("GET", "/version", Kind.READ),
        ("GET", "/v1/responses/resp_1", Kind.RESPONSE),
        ("DELETE", "/v1/responses/resp_1", Kind.RESPONSE),
        ("POST", "/v1/responses/resp_1/cancel", Kind.RESPONSE),
    ],
)
def test_a_request_has_its_kind(method: str, path: str, kind: Kind) -> None:
    route = route_of(method, path)
    assert route is not None
    assert route.kind is kind


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/chat/completionsx"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/messages\n"),
        ("GET", "/v1/responses/.."),
        ("GET", "/v1/responses/a/b"),
        ("GET", "/v1/responses/"),
        ("POST", "/v1/responses/resp_1"),
        ("GET", "/metrics"),
        ("GET", "/v1x/responses/resp_1"),
        ("GET", "/server_info"),
    ],
)
def test_anything_else_is_no_route(method: str, path: str) -> None:
    assert route_of(method, path) is None


def test_every_route_is_shown_to_those_who_ask_for_another() -> None:
    assert {route.shown for route in ROUTES} < set(SHOWN)


@pytest.mark.parametrize("text", ["resp_1", "a.b", "A-b:c"])
def test_an_id_of_a_response_is_found_in_its_paths(text: str) -> None:
    assert is_response_id(text)
    assert response_id_of(f"/v1/responses/{text}") == response_id_of(f"/v1/responses/{text}/cancel") == text


@pytest.mark.parametrize("text", [None, 7, "", "..", "a/b", "a?b", "a#b", "a b", "a\n", "x" * 257, "%2e", "é"])
def test_what_cannot_stand_in_a_path_is_no_id(text: object) -> None:
    assert not is_response_id(text)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/p/run-1/v1/models", ("run-1", "/v1/models")),
        ("/p/a.b:c@d_e/v1/messages", ("a.b:c@d_e", "/v1/messages")),
        ("/v1/messages", ("", "/v1/messages")),
        ("/p/../v1/messages", ("", "/p/../v1/messages")),
        ("/p//v1/messages", ("", "/p//v1/messages")),
        ("/p/run", ("", "/p/run")),
    ],
)
def test_a_path_may_begin_with_a_program(path: str, wanted: tuple[str, str]) -> None:
    assert split_program(path) == wanted
