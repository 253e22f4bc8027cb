"""A request as the gateway sees it, and the head it sends on. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from agentserving_gateway.admission import Admitted
from agentserving_gateway.errors import HttpError


@dataclass(frozen=True, slots=True)
class Route:
    """`managed`: a call of a program, with admission and ticket."""

    method: bytes
    managed: bool


ROUTES = {
    "/v1/chat/completions": Route(b"POST", True),
    "/v1/completions": Route(b"POST", True),
    "/v1/responses": Route(b"POST", True),
    "/v1/messages": Route(b"POST", True),
    # Claude Code asks before it calls; nothing is generated.
    "/v1/messages/count_tokens": Route(b"POST", False),
    "/v1/embeddings": Route(b"POST", False),
    "/v1/models": Route(b"GET", False),
}

# Ours to set, or meaningful only between two neighbours.
_DROPPED = {
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"trailer", b"upgrade",
    b"transfer-encoding", b"content-length", b"expect", b"host", b"x-session-id", b"x-vllm-priority",
    b"x-request-id", b"x-data-parallel-rank",
}  # fmt: skip


@dataclass(slots=True)
class Request:
    """Filled by the parser; `body` is unchunked."""

    target: bytes = b""
    method: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    started: bool = False
    head_done: bool = False
    keep_alive: bool = False
    head_bytes: int = 0

    @property
    def path(self) -> str:
        """Without the query."""
        return self.target.split(b"?", 1)[0].decode("latin-1")

    def header(self, name: str) -> str:
        """First value, or empty."""
        wanted = name.encode()
        for key, value in self.headers:
            if key.lower() == wanted:
                return value.decode("latin-1")
        return ""

    def header_map(self) -> dict[str, str]:
        """Names in lower case; the first of equals wins."""
        found: dict[str, str] = {}
        for name, value in self.headers:
            found.setdefault(name.lower().decode("latin-1"), value.decode("latin-1"))
        return found

    def may_stream(self) -> bool:
        """True when the answer may be a stream: the word stands in the body. A guess: `upstream` copes with both."""
        return b'"stream"' in self.body

    def tenant(self) -> str:
        """From the credential; one tenant until credentials are mapped to tenants."""
        return "default"

    def check(self, max_body_bytes: int) -> None:
        """Refuses by the head alone. HttpError."""
        lengths = {value for name, value in self.headers if name.lower() == b"content-length"}
        coding = [value for name, value in self.headers if name.lower() == b"transfer-encoding"]
        if (lengths and coding) or len(lengths) > 1 or len(coding) > 1:
            raise HttpError(400, "content-length and transfer-encoding contradict each other")
        if coding and coding[0].strip().lower() != b"chunked":
            raise HttpError(400, "transfer-encoding: only chunked is understood")
        if self.header("upgrade"):
            raise HttpError(400, "upgrade is not supported: speak HTTP/1.1 (in Java, HttpClient.Version.HTTP_1_1)")
        route = ROUTES.get(self.path)
        if route is None:
            raise HttpError(404, f"no route {self.path[:100]}; there are {', '.join(ROUTES)}", code="not_found")
        if self.method != route.method:
            raise HttpError(405, f"{self.path} takes {route.method.decode()}", code="method_not_allowed")
        if lengths and int(next(iter(lengths))) > max_body_bytes:
            raise HttpError(413, f"request body: at most {max_body_bytes} bytes", code="body_too_large")

    def check_body(self) -> None:
        """Refuses a body that would undo the ticket: vLLM lets `session_id` in the body win over the header."""
        if b"\x00" in self.body:
            # UTF-16 and UTF-32, which Python's json takes too, would hide the word from the next line.
            raise HttpError(400, "the body is not JSON in UTF-8: it holds a zero byte")
        if b"session_id" not in self.body and b"\\u" not in self.body:
            return
        try:
            document = json.loads(self.body)
        except ValueError:
            return  # the engine says what is wrong with it
        except RecursionError:
            raise HttpError(400, "the body is nested too deeply") from None
        extra = document.get("vllm_xargs") if isinstance(document, dict) else None
        if isinstance(document, dict) and "session_id" in document:
            raise HttpError(400, "session_id is set by the gateway: name your program in x-agentserving-program-id",
                            param="session_id", code="reserved_field")  # fmt: skip
        if isinstance(extra, dict) and "session_id" in extra:
            raise HttpError(400, "vllm_xargs.session_id is set by the gateway: use x-agentserving-program-id",
                            param="vllm_xargs.session_id", code="reserved_field")  # fmt: skip


def upstream_head(request: Request, admitted: Admitted, *, keep: bool) -> bytes:
    """The request head for the engine: the client's own headers, ours in the place of those that order calls.

    `keep`: the connection may serve another call afterwards.
    """
    lines = [request.method + b" " + request.target + b" HTTP/1.1", b"host: " + admitted.engine_address.encode()]
    lines += [name + b": " + value for name, value in request.headers if name.lower() not in _DROPPED]
    if request.method == b"POST":
        lines.append(b"content-length: %d" % len(request.body))
    if not keep:
        lines.append(b"connection: close")
    if admitted.ticket:
        lines.append(f"x-session-id: {admitted.ticket}".encode())
    if admitted.call_id:
        lines.append(f"x-request-id: {admitted.call_id}".encode())
    return b"\r\n".join(lines) + b"\r\n\r\n"
