"""The hook of aiohttp: `ClientRequest.send`, which runs once for each hop, after its host is known.

A redirect builds a new ClientRequest from the caller's headers, so ours never travel to another host.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from agentserving.programs import headers
from agentserving.programs.carrying import CallFor, Patch


def patches(call_for: CallFor) -> list[Patch]:
    """ImportError without aiohttp."""
    import aiohttp

    return [(aiohttp.ClientRequest, "send", lambda original: _send(original, call_for))]


def _send(original: Callable[[Any, Any], Awaitable[Any]], call_for: CallFor) -> Callable[[Any, Any], Awaitable[Any]]:
    @functools.wraps(original)
    async def send(request: Any, connection: Any) -> Any:
        call = call_for(request.method, request.url, request.headers.get(headers.PROGRAM_ID, ""))
        if call is None:
            return await original(request, connection)
        for name, value in call.headers.items():
            request.headers.setdefault(name, value)
        try:
            response = await original(request, connection)
        except BaseException:
            call.end()
            raise
        # Closed before its end, or failed: nothing reports that.
        weakref.finalize(response, call.end)
        start = response.start

        async def started(connection: Any) -> Any:
            # Its reference to the response would keep it from being collected.
            del response.start
            found = await start(connection)
            if response.ok:
                call.answered(response.headers.get(headers.CALL_ID, ""))
            response.content.on_eof(call.end)
            return found

        response.start = started
        return response

    return send
