"""The HTTP server of the page: on loopback, for the one who has the token that its URL ends with.

The static files are the same for everyone and say nothing. Everything else needs the token in a header, which no other
page can send: a browser asks first, and is refused. The Host header must be this machine's, so that no other name leads
here (DNS rebinding). The token is in the URL's fragment, which browsers do not send.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import unquote, urlsplit

from agentserving import AgentServingError, Client, PermissionDeniedError
from agentserving.client import operations, tenant_operations
from agentserving.client.values import ProgramState

from agentserving_cli.ui.data import Json, cluster_json, programs_json, trace_json

TOKEN_HEADER = "X-Agentserving-Ui-Token"
# Programs in the list; a browser shows no more without getting slow.
MAX_PROGRAMS = 1000
EVERY_STATE = tuple(state for state in ProgramState if state)

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/ui.js": ("ui.js", "text/javascript; charset=utf-8"),
    "/gantt.js": ("gantt.js", "text/javascript; charset=utf-8"),
    "/ui.css": ("ui.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Source:
    """What the page asks of the control plane. Used by many OS threads at a time, as the client may be."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def programs(self) -> Json:
        """The list, closed ones included."""
        page = self._client.run(operations.list_page(EVERY_STATE, page_size=MAX_PROGRAMS))
        return programs_json(page.programs, more=bool(page.next_page_token))

    def cluster(self) -> Json:
        """Engines, policy and tenants; only what it is not allowed to see for a client's key."""
        try:
            tenants = self._client.run(tenant_operations.list_tenants_page()).tenants
            return cluster_json(self._client.get_overview(), self._client.get_policy(), tenants)
        except PermissionDeniedError:
            return {"hidden": "engines and policy are shown to administrators: this key is a client's"}

    def trace(self, program_id: str) -> Json:
        """A program's run, as the page draws it."""
        return trace_json(self._client.get_trace(program_id))


class Server(ThreadingHTTPServer):
    """Serves until `shutdown`; `url` is for the person who started it."""

    daemon_threads = True

    def __init__(self, source: Source, reason_of: Callable[[AgentServingError], str], port: int = 0) -> None:
        """`reason_of`: an error in one line. OSError when the port is taken."""
        super().__init__(("127.0.0.1", port), _Handler)
        self.source, self.reason_of = source, reason_of
        self.token = secrets.token_urlsafe(24)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/#token={self.token}"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """A file of the page, or data for it."""
        path = urlsplit(self.path).path
        if self.headers.get("Host", "").partition(":")[0] not in ("127.0.0.1", "localhost"):
            self._send_json(403, {"error": "not a host name of this page"})
        elif (file := _FILES.get(path)) is not None:
            body = files("agentserving_cli.ui").joinpath("page", file[0]).read_bytes()
            self._send(200, file[1], body)
        elif not hmac.compare_digest(self.headers.get(TOKEN_HEADER, "").encode(), self.server.token.encode()):
            self._send_json(403, {"error": "open the URL that `agentserving ui` has printed: it ends with a token"})
        else:
            self._answer(path)

    def _answer(self, path: str) -> None:
        source = self.server.source
        try:
            if path == "/api/programs":
                self._send_json(200, source.programs())
            elif path == "/api/cluster":
                self._send_json(200, source.cluster())
            elif path.startswith("/api/trace/"):
                self._send_json(200, source.trace(unquote(path.removeprefix("/api/trace/"))))
            else:
                self._send_json(404, {"error": f"nothing at {path}"})
        except AgentServingError as error:
            self._send_json(502, {"error": self.server.reason_of(error)})

    def _send_json(self, status: int, value: Json) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows the URL."""
