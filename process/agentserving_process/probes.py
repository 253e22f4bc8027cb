"""The HTTP server of a process for Kubernetes and Prometheus: /healthz, /readyz and /metrics.

/healthz says that the event loop runs; a process that has lost a task ends (supervision) and need not report it here.
With a token, everything but the two probes needs it: a kubelet has no credential, Prometheus can have one.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import REGISTRY, generate_latest

from agentserving_process.addresses import of_all_families
from agentserving_process.listening import cannot_listen
from agentserving_process.options import option

log = structlog.get_logger()

_PROBES = ("/healthz", "/readyz")
# Of the text format that generate_latest writes.
CONTENT_TYPE = "text/plain"


class Answer(NamedTuple):
    """Of a probe: 200 or 503, and one line for people."""

    ok: bool
    text: str


ALIVE = Answer(True, "ok")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    """Probes and metrics"""

    http_host: str = option("127.0.0.1", "interface of the HTTP server; probes of a pod come from outside")
    http_port: int = option(0, "port of /healthz, /readyz and /metrics; 0: none", least=0, most=65535)
    metrics_token_file: Path | None = option(
        None, "file with a token that readers of /metrics must send (Authorization: Bearer ...); none: anyone may read"
    )

    def __post_init__(self) -> None:
        if self.metrics_token_file is not None and not _read_token(self.metrics_token_file):
            raise ValueError(f"--metrics-token-file: {self.metrics_token_file} has no token, or cannot be read")


def application(
    *,
    ready: Callable[[], Answer] = lambda: ALIVE,
    healthy: Callable[[], Answer] = lambda: ALIVE,
    metrics: Callable[[], bytes] = lambda: generate_latest(REGISTRY),
    routes: Iterable[web.AbstractRouteDef] = (),
) -> web.Application:
    """The three routes, and those that a process adds. A probe that raises answers 503 with the reason."""

    def probe(ask: Callable[[], Answer]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(_: web.Request) -> web.StreamResponse:
            try:
                answer = ask()
            except Exception as error:
                answer = Answer(False, f"the probe failed: {type(error).__name__}: {error}")
            return web.Response(status=200 if answer.ok else 503, text=f"{answer.text}\n")

        return handle

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=metrics(), content_type=CONTENT_TYPE)

    app = web.Application()
    app.add_routes(
        [web.get("/healthz", probe(healthy)), web.get("/readyz", probe(ready)), web.get("/metrics", scrape), *routes]
    )
    return app


@asynccontextmanager
async def served(app: web.Application, options: ProbeOptions) -> AsyncIterator[None]:
    """Serves it while the block runs. CannotStartError when the port cannot be opened."""
    if options.metrics_token_file is not None:
        app.middlewares.append(_with_token(options.metrics_token_file))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        if options.http_port:
            try:
                await web.TCPSite(runner, of_all_families(options.http_host), options.http_port).start()
            except OSError as error:
                raise cannot_listen(f"{options.http_host}:{options.http_port}", error) from None
        yield
    finally:
        await runner.cleanup()


def _read_token(path: Path) -> bytes:
    """Empty when there is none: then nobody may read."""
    try:
        return path.read_bytes().strip()
    except OSError as error:
        log.warning("the token of metrics cannot be read", file=str(path), error=error.strerror)
        return b""


def _with_token(path: Path) -> Middleware:
    """The file is read for each request, a few a minute: a replaced token is in force at once."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in _PROBES:
            token, (scheme, _, sent) = _read_token(path), request.headers.get("authorization", "").partition(" ")
            given = sent.strip().encode("utf-8", "surrogateescape")
            if not token or scheme.lower() != "bearer" or not hmac.compare_digest(given, token):
                text = "send the token of --metrics-token-file as Authorization: Bearer\n"
                return web.Response(status=401, text=text, headers={"www-authenticate": 'Bearer realm="metrics"'})
        return await handler(request)

    return check
