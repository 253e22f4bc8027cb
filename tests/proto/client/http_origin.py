"""An HTTP server of a test: remembers what it was sent, answers with call ids like the gateway, redirects on demand."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Origin:
    """One origin. `seen`: the agentserving headers of each request, names without their prefix."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []
        self.status = 200
        self.redirect_to = ""
        self.base_url = ""
        self.numbers = itertools.count()


@contextmanager
def origin() -> Iterator[Origin]:
    """Serves until the end."""
    made = Origin()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            prefix = "x-agentserving-"
            sent = {k.lower().removeprefix(prefix): v for k, v in self.headers.items() if k.lower().startswith(prefix)}
            made.seen.append(sent)
            self.send_response(307 if made.redirect_to else made.status)
            if made.redirect_to:
                self.send_header("location", made.redirect_to)
            if "program-id" in sent:
                self.send_header("x-agentserving-call-id", f"{sent['program-id']}.1.{next(made.numbers)}")
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
