"""The fields of a request body that matter here: is the answer a stream, and is a field named that is ours? Pure.

msgspec builds no objects for the other fields and takes a quarter of the time of Python's json, with which vLLM reads
the body afterwards. What msgspec rejects and json accepts (NaN, a byte order mark, lone surrogates) is what vLLM
accepts, so json decides then: no spelling hides a field from us and not from vLLM.

vLLM takes the session from the body first, then from `X-Session-ID`, then from `vllm_xargs`. The header is the ticket
of the call, so a body that names a session would take the call out of its program's account. What orders, routes or
separates calls (`priority`, `kv_transfer_params`, `cache_salt`, `request_id`) is not taken from clients, either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

# Anthropic's, in `error.details.error_code`.
NO_THREADS = "thread_unsupported_request"


class RefusedBodyError(Exception):
    """The request must not reach vLLM. `param` is the field, `code` a closed word."""

    def __init__(self, message: str, *, param: str | None, code: str, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status


class _Body(msgspec.Struct):
    stream: Any = None
    session_id: Any = None
    priority: Any = None
    kv_transfer_params: Any = None
    ec_transfer_params: Any = None
    cache_salt: Any = None
    request_id: Any = None
    vllm_xargs: Any = None
    thread: Any = None


_OURS = ("priority", "kv_transfer_params", "ec_transfer_params", "cache_salt", "request_id")


_DECODER = msgspec.json.Decoder(_Body)


def asks_for_a_stream(chunks: Sequence[bytes], *, threads: bool = True) -> bool:
    """Reads a whole request body, in the chunks in which it arrived. False for what vLLM will reject.

    `threads` False: the field `thread` is refused. With it Anthropic's SDK sends only what is new in a conversation;
    vLLM stores none and would answer without the rest. The SDK recognises the refusal and sends everything.
    Raises RefusedBodyError.
    """
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    try:
        found = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = _as_python_reads(body)
    more = found.vllm_xargs if isinstance(found.vllm_xargs, dict) else {}
    if _names_a_session(found.session_id):
        raise _reserved("session_id")
    if _names_a_session(more.get("session_id")):
        raise _reserved("vllm_xargs.session_id")
    for name in _OURS:
        if not _says_nothing(getattr(found, name)):
            raise _reserved(name)
        if not _says_nothing(more.get(name)):
            raise _reserved(f"vllm_xargs.{name}")
    if not threads and found.thread is not None:
        message = "this engine stores no conversations: send the whole one, without thread"
        raise RefusedBodyError(message, param="thread", code=NO_THREADS)
    # pydantic also takes "yes" and 1 for true. Those streams are served, too; they are not opened early.
    return found.stream is True


def _names_a_session(value: object) -> bool:
    return value is not None and value != ""


def _says_nothing(value: object) -> bool:
    """What vLLM takes for absent, and the default of `priority`."""
    return value is None or value == 0 or value in ("", {})


def with_salt(body: bytes, salt: str) -> bytes:
    """The body with `cache_salt`. Python's json takes the last of equal names, so it is added at the end.

    What is no JSON object stays as it is: vLLM will refuse it.
    """
    end = body.rstrip(b" \t\r\n")
    try:
        # A body in UTF-16, or with a byte order mark, is none for msgspec.
        empty = not msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _salted_by_python(body, salt)
    return end[:-1] + (b"" if empty else b",") + b'"cache_salt":"' + salt.encode() + b'"}'


def _salted_by_python(body: bytes, salt: str) -> bytes:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if not isinstance(document, dict):
        return body
    return json.dumps({**document, "cache_salt": salt}).encode()


def _reserved(field: str) -> RefusedBodyError:
    message = f"{field} is set by agentserving: remove it"
    if "session" in field:
        message = f"{field} is set by agentserving: name your program in the header x-agentserving-program-id"
    return RefusedBodyError(message, param=field, code="reserved_field")


def _as_python_reads(body: bytes) -> _Body:
    try:
        document = json.loads(body)
    except RecursionError:
        message = "the body is nested too deeply: send a flatter JSON document"
        raise RefusedBodyError(message, param=None, code="invalid_json") from None
    except ValueError:
        return _Body()
    if not isinstance(document, dict):
        return _Body()
    return _Body(**{name: document[name] for name in _Body.__struct_fields__ if name in document})
