"""The fields of a request body that matter here: is the answer a stream, and does it name a session? Pure.

msgspec builds no objects for the other fields and takes a quarter of the time of Python's json, with which vLLM reads
the body afterwards. What msgspec rejects and json accepts (NaN, a byte order mark, lone surrogates) is what vLLM
accepts, so json decides then: no spelling hides a field from us and not from vLLM.

vLLM takes the session from the body first, then from `X-Session-ID`, then from `vllm_xargs`. The header is the ticket
of the call, so a body that names a session would take the call out of its program's account.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec


class RefusedBodyError(Exception):
    """The request must not reach vLLM. `param` is the field, `code` a closed word."""

    def __init__(self, message: str, *, param: str | None, code: str) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class _Body(msgspec.Struct):
    stream: Any = None
    session_id: Any = None
    vllm_xargs: Any = None


_DECODER = msgspec.json.Decoder(_Body)


def asks_for_a_stream(chunks: Sequence[bytes]) -> bool:
    """Reads a whole request body, in the chunks in which it arrived. False for what vLLM will reject.

    Raises RefusedBodyError.
    """
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    try:
        found = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = _as_python_reads(body)
    if _names_a_session(found.session_id):
        raise _reserved("session_id")
    if isinstance(found.vllm_xargs, dict) and _names_a_session(found.vllm_xargs.get("session_id")):
        raise _reserved("vllm_xargs.session_id")
    # pydantic also takes "yes" and 1 for true. Those streams are served, too; they are not opened early.
    return found.stream is True


def _names_a_session(value: object) -> bool:
    return value is not None and value != ""


def _reserved(field: str) -> RefusedBodyError:
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
