"""A proxy in front of the API server that kills its client at the k-th write.

That write was carried out, but the client never gets the response: the worst moment for a crash.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

# Headers of a single connection, which are not forwarded.
HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "host"}
UPSTREAM_BOUND_S = 400.0


class FatalProxy:
    """`with FatalProxy(url) as proxy`: `arm(k, kill)` has `kill` called at the k-th write from then on.

    `writes` counts the writes since then. After `kill` was called, no request is answered until the next `arm`.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._context = ssl.create_default_context()
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._lock = threading.Lock()
        self._limit, self._kill = 0, lambda: None
        self.writes = 0
        self.fired = False
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    proxy.pass_on(self)
                self.close_connection = True

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

            def log_message(self, *_: object) -> None:
                """Logs nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FatalProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def arm(self, limit: int, kill: Callable[[], None]) -> None:
        """Sets the number of the fatal write; 0 = none."""
        with self._lock:
            self._limit, self._kill, self.writes, self.fired = limit, kill, 0, False

    def pass_on(self, asked: BaseHTTPRequestHandler) -> None:
        """Forwards one request; a watch for as long as it lasts."""
        if self.fired:
            return
        headers = {key: value for key, value in asked.headers.items() if key.lower() not in HOP}
        body = asked.rfile.read(int(asked.headers.get("Content-Length") or 0))
        host, port = str(self._upstream.hostname), self._upstream.port
        upstream = http.client.HTTPSConnection(host, port, context=self._context, timeout=UPSTREAM_BOUND_S)
        with contextlib.closing(upstream):
            upstream.request(str(asked.command), asked.path, body or None, headers)
            answer = upstream.getresponse()
            if asked.command != "GET" and self._is_fatal():
                return
            asked.send_response_only(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in HOP:
                    asked.send_header(key, value)
            asked.send_header("Connection", "close")
            asked.end_headers()
            while part := answer.read1(1 << 16):
                asked.wfile.write(part)

    def _is_fatal(self) -> bool:
        with self._lock:
            if self.fired:
                return True
            self.writes += 1
            self.fired = self.writes == self._limit
            if self.fired:
                self._kill()
            return self.fired
