"""The few fields of a request body that the gateway reads. Pure; the body itself is passed on unchanged.

msgspec skips everything else at about a gigabyte a second, so bodies of any accepted size are read. What it refuses and
Python's json takes (NaN, a byte order mark, lone surrogates) is what vLLM takes, too: then json decides.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from agentserving_gateway.errors import HttpError

# No model has a longer name; a longer one stays unknown when it is cut.
MAX_MODEL_CHARS = 512


class Body(msgspec.Struct):
    """Fields of any type: what a client may put into them is for the engine to judge."""

    model: Any = None
    stream: Any = None
    program_id: Any = None
    prompt_cache_key: Any = None
    previous_response_id: Any = None
    vllm_xargs: Any = None
    session_id: Any = msgspec.UNSET
    # Unparsed: `content` reads them, for calls without an id.
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()

    @property
    def model_name(self) -> str:
        """Empty = any."""
        if not isinstance(self.model, str):
            return ""
        # Lone surrogates, which JSON can spell, have no UTF-8.
        return self.model[:MAX_MODEL_CHARS].encode("utf-8", "replace").decode()

    @property
    def extra(self) -> dict[str, Any]:
        """vLLM's own arguments."""
        return self.vllm_xargs if isinstance(self.vllm_xargs, dict) else {}


_PARSED = tuple(name for name, kind in Body.__annotations__.items() if kind == "Any")
_DECODER = msgspec.json.Decoder(Body)
# Unreadable: the answer might be a stream.
_UNKNOWN = Body(stream=True)


def read_body(body: bytes | bytearray) -> Body:
    """The fields of a JSON object; defaults for anything else, which the engine refuses in its own words.

    HttpError for a body that would hide a field from us and not from the engine, or that sets one of ours.
    """
    try:
        found = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = _as_python_reads(body)
    except RecursionError:
        raise HttpError(400, "the body is nested too deeply: send a flatter JSON document") from None
    if found.session_id is not msgspec.UNSET:
        raise HttpError(
            400, "session_id is set by the gateway: name your program in x-agentserving-program-id",
            param="session_id", code="reserved_field",
        )  # fmt: skip
    if "session_id" in found.extra:
        raise HttpError(
            400, "vllm_xargs.session_id is set by the gateway: name your program in x-agentserving-program-id",
            param="vllm_xargs.session_id", code="reserved_field",
        )  # fmt: skip
    return found


def _as_python_reads(body: bytes | bytearray) -> Body:
    if b"\x00" in body:
        # UTF-16 and UTF-32: Python's json would decode them.
        raise HttpError(400, "the body contains a zero byte: send JSON in UTF-8")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise HttpError(400, "the body is nested too deeply: send a flatter JSON document") from None
        return _UNKNOWN
    if not isinstance(document, dict):
        return _UNKNOWN
    return Body(**{name: document[name] for name in _PARSED if name in document})
