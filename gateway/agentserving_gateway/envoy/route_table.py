"""Envoy's route table. Pure."""

from __future__ import annotations

import re

from agentserving_gateway.envoy import filters, names
from agentserving_gateway.envoy.clusters import BATCHES, ENGINES, READS
from agentserving_gateway.envoy.extensions import Json, header, seconds, typed
from agentserving_gateway.envoy.settings import FrontSettings
from agentserving_gateway.routes import BATCH_ROUTES, HEALTH, MODELS, PROGRAM_PREFIX, ROUTES, Route

# A request that broke one engine is sent to one more, no further: it may be what breaks them.
RETRIES = 1
RETRY_ON = "connect-failure,refused-stream,reset"
# The engine, or something on its way, failed: another one may do better. In force where the picker names another one.
SERVER_ERRORS = [500, 502, 503, 504]
READS_S = 5.0
# For some three seconds, so that the answer says that the picker is away, and not that it was too slow.
RETRY_READS: Json = {**filters.RETRY_PICKER, "num_retries": 24}
_EXPOSED = (names.CALL_ID, names.PROGRAM_ID, names.ENGINE, names.REQUEST_ID, names.BUDGET, "retry-after")


def route_config(settings: FrontSettings) -> Json:
    """RouteConfiguration: one virtual host."""
    host: Json = {
        "name": "front",
        "domains": ["*"],
        "typed_per_filter_config": {"envoy.filters.http.cors": _cors()},
        # Retries need the whole body; the limit of bodies is a filter's.
        "request_body_buffer_limit": settings.max_body_bytes,
        "routes": [
            *_preflights(),
            *_engine_routes(settings),
            *_batch_routes(settings),
            *_own_routes(),
            *_refusals(settings),
        ],
    }
    return {"name": "front", "virtual_hosts": [host]}


def _cors() -> Json:
    # Browsers hold no credential of this gateway that another site could use: there are no cookies.
    return typed(
        "extensions.filters.http.cors.v3.CorsPolicy",
        allow_origin_string_match=[{"safe_regex": {"regex": ".*"}}],
        allow_methods="GET, POST, DELETE, OPTIONS",
        allow_headers="*, authorization",
        expose_headers=", ".join(_EXPOSED),
        max_age="600",
    )


def _methods(*methods: str) -> Json:
    one: Json = {"exact": methods[0]} if len(methods) == 1 else {"safe_regex": {"regex": "|".join(methods)}}
    return {"name": ":method", "string_match": one}


def _present(name: str, present: bool = True) -> Json:
    return {"name": name, "present_match": present}


# An engine would take the body of such a request for the next request on its connection.
_NO_BODY = (_present("content-length", False), _present("transfer-encoding", False))


def _match(path: str, *headers: Json) -> Json:
    """`path` is a regular expression; one that matches a single path is compared with it, which is cheaper."""
    text = re.sub(r"\\(.)", r"\1", path)
    how: Json = {"path": text} if re.escape(text) == path else {"safe_regex": {"regex": path}}
    return {**how, "headers": list(headers)}


def _preflights() -> list[Json]:
    """The CORS filter answers these before the router, which must have a cluster to go to."""
    wanted = (_methods("OPTIONS"), _present("origin"), _present("access-control-request-method"))
    return [
        {
            "name": "preflight",
            "match": _match(".*", *wanted),
            "route": {"cluster": READS},
            "typed_per_filter_config": filters.not_asked(),
        }
    ]


def _engine_routes(settings: FrontSettings) -> list[Json]:
    """Those with a program in the URL are last: fewer requests have one."""
    return [one for prefix in ("", PROGRAM_PREFIX) for route in ROUTES for one in _two_matches(route, prefix, settings)]


def _two_matches(route: Route, prefix: str, settings: FrontSettings) -> list[Json]:
    bodiless = route.methods != ("POST",)
    headers = (_methods(*route.methods), *(_NO_BODY if bodiless else ()))
    after_look = {
        "name": route.shown,
        "match": _match(prefix + route.path, _present(names.LOOK), *headers),
        "route": _to_engines(route, settings) | _without(prefix),
        "typed_per_filter_config": filters.only_body(),
        **_heads(settings),
    }
    first = {
        "name": route.shown,
        "match": _match(prefix + route.path, *headers),
        "route": _to_engines(route, settings) | _without(prefix),
        "typed_per_filter_config": filters.only_head(),
        **_heads(settings),
    }
    return [first] if bodiless else [after_look, first]


def _batch_routes(settings: FrontSettings) -> list[Json]:
    """The picker says by the head who asks; the batch service receives the body as it comes."""
    if not settings.batches:
        return []
    return [
        {
            "name": route.shown,
            "match": _match(
                prefix + route.path, _methods(*route.methods), *(() if route.methods == ("POST",) else _NO_BODY)
            ),
            # Whole bodies are never kept for a retry.
            "request_body_buffer_limit": 0,
            "route": {
                "cluster": BATCHES, "timeout": seconds(route.answer_s), "idle_timeout": "300s", **_without(prefix),
            },
            "typed_per_filter_config": filters.only_head(),
            **_heads(settings),
        }
        for prefix in ("", PROGRAM_PREFIX)
        for route in BATCH_ROUTES
    ]  # fmt: skip


def _without(prefix: str) -> Json:
    """Neither engines nor the picker's own answers know of programs in paths."""
    return {"regex_rewrite": {"pattern": {"regex": f"^{prefix}"}, "substitution": ""}} if prefix else {}


def _to_engines(route: Route, settings: FrontSettings) -> Json:
    return {
        "cluster": ENGINES,
        # A hung engine must leave time for another one.
        "timeout": seconds(route.answer_s * (1 + RETRIES)),
        "idle_timeout": "0s",
        # Read only while the picker is away: programs stay where they are.
        "hash_policy": [
            {"header": {"header_name": name}, "terminal": True}
            for name in (*settings.identity_headers, names.CLIENT_SESSION)
        ],
        "retry_policy": _retries(route),
    }


def _retries(route: Route) -> Json:
    predicate = typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")
    per_try: Json = {"per_try_timeout": seconds(route.answer_s)} if route.answer_s else {}
    return {
        **per_try,
        "retry_on": RETRY_ON,
        "retriable_status_codes": SERVER_ERRORS,
        "num_retries": RETRIES,
        # Without names, the ring is asked for another engine so often: with 5 the retry met the engine that had failed.
        "host_selection_retry_max_attempts": 30,
        "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": predicate}],
        "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.1s"},
    }


def _heads(settings: FrontSettings) -> Json:
    """What a client learns of its call, and what is between Envoy and the picker."""
    return {
        "request_headers_to_remove": [
            names.LOOK, names.CLIENT_SESSION, names.CLIENT_LENGTH, names.CLIENT_ADDRESS, "x-forwarded-proto",
            "x-envoy-expected-rq-timeout-ms", *(names.CREDENTIALS if settings.client_keys else ()),
        ],
        "response_headers_to_add": [
            header(names.PROGRAM_ID, f"%REQ({names.PROGRAM_ID})%"),
            header(names.CALL_ID, f"%REQ({names.CALL_ID})%"),
            header(names.ENGINE, "%UPSTREAM_METADATA(agentserving:engine)%"),
            header(names.REQUEST_ID, f"%REQ({names.CLIENT_REQUEST_ID})%"),
            # nginx would hold a stream back.
            header("x-accel-buffering", "no"),
        ],
    }  # fmt: skip


def _own_routes() -> list[Json]:
    models = [
        {
            "name": "/v1/models",
            "match": _match(prefix + MODELS, _methods("GET", "HEAD"), *_NO_BODY),
            "route": {
                "cluster": READS, "timeout": seconds(READS_S), "retry_policy": RETRY_READS, **_without(prefix),
            },
            "typed_per_filter_config": filters.not_asked(),
        }
        for prefix in ("", PROGRAM_PREFIX)
    ]  # fmt: skip
    return [*models, _answered("/health", _match(HEALTH, _methods("GET", "HEAD")), 200, "ok\n")]


def _refusals(settings: FrontSettings) -> list[Json]:
    routes = (*ROUTES, *(BATCH_ROUTES if settings.batches else ()))
    known = {route.path: route.shown for route in routes} | {MODELS: "/v1/models"}
    paths = {**known, **{PROGRAM_PREFIX + path: shown for path, shown in known.items()}, HEALTH: "/health"}
    refused = [_answered(shown, _match(path), 405, "method not allowed") for path, shown in paths.items()]
    return [*refused, _answered("no such route", {"prefix": "/"}, 404, "no such route")]


def _answered(name: str, match: Json, status: int, text: str) -> Json:
    return {
        "name": name,
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": text}},
        "typed_per_filter_config": filters.not_asked(),
    }
