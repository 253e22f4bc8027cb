"""The HTTP server behind the gateway: who asks, and refusals in OpenAI's envelope."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from agentserving_process.addresses import split_address
from agentserving_process.listening import cannot_listen
from aiohttp import web

from agentserving_batches import metrics
from agentserving_batches.errors import RefusedError
from agentserving_batches.http.asker import ASKER, GRANT_TEXT, Askers
from agentserving_batches.http.audit import AuditLog

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# Before the path of a Unix socket, where an address is expected.
UNIX = "unix:"
# Of a body that is not an upload.
_MAX_BODY_BYTES = 1 << 20
# The gateway closes its connections first (contract.engine_http says why).
_KEEP_ALIVE_S = 75.0


def application(askers: Askers, routes: Iterable[web.AbstractRouteDef]) -> web.Application:
    lines = AuditLog()

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            request[ASKER], request[GRANT_TEXT] = askers.of(request)
        except RefusedError as error:
            lines.refused(request, error.code)
            return _refused(error)
        try:
            response = await handler(request)
            lines.changed(request, request[ASKER])
            return response
        except RefusedError as error:
            refusal = error
        except web.HTTPException as error:
            refusal = RefusedError(error.status, error.reason, "invalid_request")
        except ConnectionError:
            # The client has left.
            raise
        except Exception:
            log.exception("a request failed", method=request.method, route=_route(request))
            message = "the batch service failed; its log says why. Try again, and report it if that lasts"
            refusal = RefusedError(500, message, "internal_error", type="server_error")
        lines.changed(request, request[ASKER], refusal.status, refusal.code)
        return _refused(refusal)

    app = web.Application(middlewares=[answer], client_max_size=_MAX_BODY_BYTES)
    app.add_routes(routes)
    return app


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else ""


def _refused(error: RefusedError) -> web.Response:
    metrics.REFUSED.labels(error.code).inc()
    headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s else {}
    return web.json_response(error.envelope, status=error.status, headers=headers)


@asynccontextmanager
async def served(app: web.Application, listen: str) -> AsyncIterator[None]:
    """Serves it on an address, host:port or unix:PATH, while the block runs. CannotStartError."""
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=_KEEP_ALIVE_S)
    await runner.setup()
    try:
        try:
            if listen.startswith(UNIX):
                path = Path(listen.removeprefix(UNIX))
                path.unlink(missing_ok=True)
                await web.UnixSite(runner, path).start()
            else:
                host, port = split_address(listen)
                await web.TCPSite(runner, host or None, port).start()
        except OSError as error:
            raise cannot_listen(listen, error) from None
        yield
    finally:
        await runner.cleanup()
