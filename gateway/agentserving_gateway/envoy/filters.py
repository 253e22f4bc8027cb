"""The HTTP filters of the front, in their order, and what a route may switch off. Pure.

A request passes: CORS, the limit of its body, the removal of headers that clients must not set, `pick` (the picker
decides by the head), `pick by body` (only when the picker could not), what holds when no picker answered, the router.
"""

from __future__ import annotations

from collections.abc import Iterable

from agentserving_gateway.envoy import names
from agentserving_gateway.envoy.extensions import Json, extension, header, seconds, typed
from agentserving_gateway.envoy.replies import PICKER_AWAY
from agentserving_gateway.envoy.settings import FrontSettings

PICKER = "picker"
PICK, PICK_BY_BODY = "agentserving.pick", "agentserving.pick_by_body"
# Paths of the picker's socket; the request's own path follows.
HEAD_PREFIX, BODY_PREFIX = "/head", "/body"
# Calls are served without the picker: one that hangs delays a call by this at most, and its health check spares the
# next ones.
PICK_S = 2.0
# With keys nothing is served without it: calls wait for one that is slow or restarts.
PATIENT_PICK_S = 8.0
# The picker holds calls while a leader is elected (8 s, and two for its answer and for Envoy to know the engine), while
# there is no engine, and while the budget of a program is spent: only in the question with the body.
ELECTION_S = 10.0
# Of a question that met no picker, or one that ended: until the question's own limit.
RETRY_PICKER: Json = {
    "retry_on": "connect-failure,reset",
    "num_retries": 1_000,
    "retry_back_off": {"base_interval": "0.02s", "max_interval": "0.25s"},
}

_AUTHZ = "extensions.filters.http.ext_authz.v3."


def http_filters(settings: FrontSettings) -> list[Json]:
    """All of them; the router is last."""
    return [
        extension("filters.http.cors", "extensions.filters.http.cors.v3.Cors"),
        extension(
            "filters.http.body_size_limit",
            "extensions.filters.http.body_size_limit.v3.BodySizeLimit",
            max_request_bytes=settings.max_body_bytes,
        ),
        _remove_reserved(),
        _ask(settings, PICK, HEAD_PREFIX, 0.0),
        _ask(
            settings,
            PICK_BY_BODY,
            BODY_PREFIX,
            ELECTION_S + settings.hold_s + settings.budget_hold_s,
            with_request_body={"max_request_bytes": settings.max_body_bytes, "pack_as_bytes": True},
        ),
        _retry_unasked(),
        extension(
            "filters.http.router", "extensions.filters.http.router.v3.Router", suppress_envoy_headers=True
        ),
    ]  # fmt: skip


def _remove_reserved() -> Json:
    moved = (
        (names.CLIENT_SESSION, f"%REQ({names.TICKET})%"),
        (names.CLIENT_REQUEST_ID, f"%REQ({names.REQUEST_ID})%"),
        (names.CLIENT_LENGTH, "%REQ(content-length)%"),
        (names.CLIENT_ADDRESS, "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
    )
    mutations: list[Json] = [{"append": header(to, of)} for to, of in moved]
    kept = {to for to, _ in moved}
    mutations += [{"remove": name} for name in names.RESERVED if name not in kept]
    mutations.append({"remove_on_match": {"key_matcher": {"prefix": names.ENVOYS_OWN, "ignore_case": True}}})
    return extension(
        "filters.http.header_mutation",
        "extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"request_mutations": mutations},
    )


def _retry_unasked() -> Json:
    """While the picker is away nothing is known of other engines: another one, if there is any, may do better."""
    one = {"append": header(names.RETRY_ON, names.RETRY_SERVER_ERRORS, "ADD_IF_ABSENT")}
    return extension(
        "filters.http.header_mutation",
        "extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"request_mutations": [one]},
    )


def _ask(settings: FrontSettings, name: str, prefix: str, held_s: float, **fields: object) -> Json:
    """An ext_authz filter in front of the picker: HTTP/1.1, because grpc.aio costs five times as much a call.

    `held_s`: how long the picker may hold the question."""
    bound_s = held_s + (PATIENT_PICK_S if settings.client_keys else PICK_S)
    rates = [*({"prefix": prefix} for prefix in names.RATES), {"exact": names.BUDGET}]
    config = typed(
        _AUTHZ + "ExtAuthz",
        transport_api_version="V3",
        # While the picker is away, calls are served without tickets; but never for an unverified client.
        failure_mode_allow=not settings.client_keys,
        status_on_error={"code": PICKER_AWAY},
        clear_route_cache=True,
        allowed_headers=_exact((*settings.identity_headers, *names.PICKER_READS)),
        http_service={
            "server_uri": {"uri": "http://picker", "cluster": PICKER, "timeout": seconds(bound_s)},
            "path_prefix": prefix,
            **({"retry_policy": RETRY_PICKER} if settings.client_keys else {}),
            "authorization_response": {
                "allowed_upstream_headers": _exact(names.PICKER_SETS),
                "allowed_client_headers": {"patterns": [*_exact(names.REFUSAL)["patterns"], *rates]},
                "allowed_client_headers_on_success": {"patterns": rates},
            },
        },
        **fields,
    )
    return {"name": name, "typed_config": config}


def _exact(names_: Iterable[str]) -> Json:
    return {"patterns": [{"exact": name} for name in dict.fromkeys(names_)]}


def only_head() -> Json:
    """For routes of requests that the picker has not asked the body of."""
    return {PICK_BY_BODY: typed(_AUTHZ + "ExtAuthzPerRoute", disabled=True)}


def only_body() -> Json:
    """For the second match of a request, after the picker has asked for its body."""
    return {PICK: typed(_AUTHZ + "ExtAuthzPerRoute", disabled=True)}


def not_asked() -> Json:
    """For routes that the picker has no part in."""
    return {**only_head(), **only_body()}
