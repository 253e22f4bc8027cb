"""A request as the gateway sees it, the routes it knows, and the head it sends on. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from agentserving.contract.ids import Tenant

from agentserving_gateway.errors import HttpError


class Handling(Enum):
    """What becomes of a request."""

    # A call of a program, with admission and ticket.
    CALL = "call"
    # Passed on to any ready engine.
    PASS_ON = "pass on"
    # Answered from the model lists of all ready engines.
    MODELS = "models"


@dataclass(frozen=True, slots=True)
class Route:
    """`answer_s`: how long one engine may take to begin its answer; 0 = as long as it likes."""

    method: bytes
    handling: Handling
    answer_s: float = 0.0


MODELS = "/v1/models"
ROUTES = {
    "/v1/chat/completions": Route(b"POST", Handling.CALL),
    "/v1/completions": Route(b"POST", Handling.CALL),
    "/v1/responses": Route(b"POST", Handling.CALL),
    "/v1/messages": Route(b"POST", Handling.CALL),
    # Claude Code counts before it calls; nothing is generated.
    "/v1/messages/count_tokens": Route(b"POST", Handling.PASS_ON, 5.0),
    "/v1/embeddings": Route(b"POST", Handling.PASS_ON, 60.0),
    MODELS: Route(b"GET", Handling.MODELS, 3.0),
}
# /v1/models/{id}; an id may contain slashes.
ONE_MODEL = MODELS + "/{model}"

# Methods without a body: engines would take one for the next request on the connection.
_BODILESS = {b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT"}

# Set by the gateway, or valid between two neighbours only.
_DROPPED = {
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"trailer", b"upgrade",
    b"transfer-encoding", b"content-length", b"expect", b"host", b"x-session-id", b"x-vllm-priority",
    b"x-request-id", b"x-data-parallel-rank",
}  # fmt: skip


def _text(value: bytes) -> str:
    """Headers have no encoding of their own: clients send UTF-8 or Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


@dataclass(slots=True)
class Request:
    """Filled by `request_reader`; `body` is unchunked."""

    method: bytes = b""
    target: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    # HTTP/1.0 clients know no chunks.
    is_http_1_0: bool = False
    keep_alive: bool = False

    @property
    def path(self) -> str:
        """Without the query."""
        return self.target.split(b"?", 1)[0].decode("latin-1")

    @property
    def route_name(self) -> str:
        """The route as a metric label; "other" for unknown paths."""
        path = self.path
        if path in ROUTES:
            return path
        return ONE_MODEL if path.startswith(MODELS + "/") else "other"

    @property
    def route(self) -> Route | None:
        """None for a path that the gateway does not serve."""
        return ROUTES[MODELS] if self.route_name == ONE_MODEL else ROUTES.get(self.path)

    def header(self, name: bytes) -> bytes:
        """First value of a header (name in lower case), or empty."""
        for key, value in self.headers:
            if key.lower() == name:
                return value
        return b""

    def header_map(self) -> dict[str, str]:
        """Names in lower case; the first of equals wins."""
        found: dict[str, str] = {}
        for name, value in self.headers:
            found.setdefault(name.lower().decode("latin-1"), _text(value))
        return found

    def tenant(self) -> Tenant:
        """One tenant until credentials are mapped to tenants."""
        return Tenant("default")

    def check(self, max_body_bytes: int) -> None:
        """Refuses by the head alone. HttpError."""
        lengths = {value for name, value in self.headers if name.lower() == b"content-length"}
        coding = [value for name, value in self.headers if name.lower() == b"transfer-encoding"]
        if (lengths and coding) or len(lengths) > 1 or len(coding) > 1:
            raise HttpError(400, "content-length and transfer-encoding contradict each other: send one of them")
        if coding and coding[0].strip().lower() != b"chunked":
            raise HttpError(400, "transfer-encoding: only chunked is supported")
        if self.header(b"upgrade"):
            raise HttpError(400, "upgrade is not supported: use HTTP/1.1 (in Java, HttpClient.Version.HTTP_1_1)")
        length = int(next(iter(lengths))) if lengths else 0
        if self.method in _BODILESS and (length or coding):
            raise HttpError(400, f"{self.method.decode()} takes no body: send the request without one")
        route = self.route
        if route is None:
            routes = ", ".join(ROUTES)
            raise HttpError(404, f"no route {self.path[:100]}; the routes are {routes}", code="not_found")
        if self.method != route.method:
            raise HttpError(405, f"{self.path[:100]} takes {route.method.decode()}", code="method_not_allowed")
        if length > max_body_bytes:
            raise too_large(max_body_bytes)


def too_large(max_body_bytes: int) -> HttpError:
    """A body over the gateway's limit."""
    return HttpError(
        413, f"request body: at most {max_body_bytes} bytes (the gateway's --max-body-bytes)", code="body_too_large"
    )


def upstream_head(request: Request, address: str, *, keep: bool, ticket: str = "", call_id: str = "") -> bytes:
    """The request head for the engine: the client's headers, except those that the gateway sets itself.

    `keep`: the connection may serve another request afterwards.
    """
    lines = [request.method + b" " + request.target + b" HTTP/1.1", b"host: " + address.encode()]
    lines += [name + b": " + value for name, value in request.headers if name.lower() not in _DROPPED]
    if request.body or request.method not in _BODILESS:
        lines.append(b"content-length: %d" % len(request.body))
    if not keep:
        lines.append(b"connection: close")
    if ticket:
        lines.append(f"x-session-id: {ticket}".encode())
    if call_id:
        lines.append(f"x-request-id: {call_id}".encode())
    return b"\r\n".join(lines) + b"\r\n\r\n"
