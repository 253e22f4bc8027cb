"""Envoy's own replies, in the envelopes that clients of OpenAI and of Anthropic expect. Pure.

A refusal of the picker is passed on as it is: it has its envelope already.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentserving_gateway.envoy.extensions import Json, header
from agentserving_gateway.errors import anthropic_type
from agentserving_gateway.routes import PROGRAM_PREFIX

# ext_authz takes a 5xx of the picker for its failure: a refusal of 5xx travels as 4xx, and is turned back here.
_REFUSED_AS = {500: 480, 502: 482, 503: 483, 504: 484}
# The status of a reply because the picker is away, where nothing is served without it.
PICKER_AWAY = 503
# Anthropic's API is the only one with paths of its own.
ANTHROPIC_PATH = f"({PROGRAM_PREFIX})?/v1/messages.*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One kind of reply: when it applies, and what it says. `message` may use Envoy's format operators."""

    when: Json
    status: int
    message: str
    type: str = "invalid_request_error"
    code: str
    retry_after_s: int = 0


def as_refusal(status: int) -> int:
    """The status with which the picker refuses a request, so that its client gets `status`."""
    return _REFUSED_AS.get(status, status)


def _flags(*flags: str) -> Json:
    return {"response_flag_filter": {"flags": list(flags)}}


def _status(code: int) -> Json:
    value = {"default_value": code, "runtime_key": f"agentserving.reply_{code}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _at_least(code: int) -> Json:
    value = {"default_value": code, "runtime_key": f"agentserving.reply_from_{code}"}
    return {"status_code_filter": {"comparison": {"op": "GE", "value": value}}}


def _has_header(name: str) -> Json:
    return {"header_filter": {"header": {"name": name, "present_match": True}}}


def replies(max_body_bytes: int, max_head_kib: int, routes: tuple[str, ...]) -> list[Reply]:
    """In the order of precedence."""
    return [
        Reply(
            when=_has_header("upgrade"), status=426, code="upgrade_required",
            message="upgrade is not supported: send plain HTTP/1.1 or HTTP/2, and read streams as server-sent events",
        ),
        Reply(
            when=_flags("UC", "UR", "LR", "UPE"), status=502, type="server_error", code="engine_unreachable",
            message="no engine answered: the connection broke before the answer (%RESPONSE_FLAGS%)",
        ),
        Reply(
            when=_flags("UT"), status=504, type="server_error", code="engine_timeout",
            message="the engine did not answer in time",
        ),
        Reply(
            when=_flags("UH", "UF", "UO", "URX", "NC"), status=503, type="server_error", code="no_engine",
            message="no engine can be reached: try again in a moment", retry_after_s=1,
        ),
        Reply(
            when=_flags("OM"), status=503, type="server_error", code="overloaded",
            message="the gateway is out of memory: try again in a moment", retry_after_s=1,
        ),
        Reply(
            when=_status(404), status=404, code="not_found",
            message=f"no route %PATH(NQ)%; the routes are {', '.join(routes)}",
        ),
        Reply(
            when=_status(405), status=405, code="method_not_allowed",
            message="%PATH(NQ)% does not take %REQ(:METHOD)%, or takes it without a body only",
        ),
        Reply(
            when=_status(408), status=408, code="request_timeout",
            message="the request did not arrive in time: send it again",
        ),
        Reply(
            when=_status(413), status=413, code="body_too_large",
            message=f"request body: at most {max_body_bytes} bytes (the gateway's --max-body-bytes)",
        ),
        Reply(
            when=_status(431), status=431, code="head_too_large",
            message=f"request head: at most {max_head_kib} KiB",
        ),
        Reply(when=_status(501), status=501, code="bad_request", message="transfer-encoding: only chunked is known"),
        Reply(
            when=_at_least(500), status=503, type="server_error", code="unavailable",
            message="%LOCAL_REPLY_BODY%", retry_after_s=1,
        ),
        Reply(
            when=_at_least(400), status=400, code="bad_request",
            message="the request is not valid HTTP: %RESPONSE_CODE_DETAILS%",
        ),
    ]  # fmt: skip


def local_reply_config(max_body_bytes: int, max_head_kib: int, routes: tuple[str, ...]) -> Json:
    """LocalReplyConfig: the first mapper that matches decides."""
    # ext_authz's denial is the picker's own answer.
    denied = _flags("UAEX")
    mappers: list[Json] = [
        {"filter": {"and_filter": {"filters": [denied, _status(code)]}}, "status_code": status,
         "body_format_override": _TEXT}
        for status, code in _REFUSED_AS.items()
    ]  # fmt: skip
    anthropic = {
        "header_filter": {"header": {"name": ":path", "string_match": {"safe_regex": {"regex": ANTHROPIC_PATH}}}}
    }
    # The picker's own 503 travels as 483, so this is one that it has not given.
    away = Reply(
        when={"and_filter": {"filters": [denied, _status(PICKER_AWAY)]}}, status=PICKER_AWAY, type="server_error",
        code="unavailable", message="the gateway cannot verify API keys at the moment: try again in a moment",
        retry_after_s=1,
    )  # fmt: skip
    mappers.append(_mapper(away, {"and_filter": {"filters": [anthropic, away.when]}}, _anthropic(away)))
    mappers.append(_mapper(away, away.when, _openai(away)))
    mappers.append({"filter": denied, "body_format_override": _TEXT})
    for reply in replies(max_body_bytes, max_head_kib, routes):
        mappers.append(_mapper(reply, {"and_filter": {"filters": [anthropic, reply.when]}}, _anthropic(reply)))
        mappers.append(_mapper(reply, reply.when, _openai(reply)))
    return {"mappers": mappers}


_TEXT: Json = {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}, "content_type": "application/json"}


def _mapper(reply: Reply, when: Json, document: Json) -> Json:
    mapper: Json = {"filter": when, "status_code": reply.status, "body_format_override": {"json_format": document}}
    if reply.retry_after_s:
        mapper["headers_to_add"] = [header("retry-after", str(reply.retry_after_s))]
    return mapper


def _openai(reply: Reply) -> Json:
    return {"error": {"message": reply.message, "type": reply.type, "param": None, "code": reply.code}}


def _anthropic(reply: Reply) -> Json:
    return {"type": "error", "error": {"type": anthropic_type(reply.status), "message": reply.message}}
