"""The hook of urllib3, and of requests with it: `HTTPConnectionPool.urlopen`, which sends to one host.

A pool calls its own `urlopen` again for retries: they are the same call. Redirects to other hosts are followed by
PoolManager and by requests from the caller's headers, so ours never travel to another host.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from agentserving.programs import headers as ours
from agentserving.programs.carrying import CallFor, Patch, sending


@dataclass(frozen=True, slots=True)
class _Target:
    scheme: str
    host: str
    port: int | None


def patches(call_for: CallFor) -> list[Patch]:
    """ImportError without urllib3."""
    from urllib3.connectionpool import HTTPConnectionPool

    return [(HTTPConnectionPool, "urlopen", lambda original: _urlopen(original, call_for))]


def _target(pool: Any, url: str) -> _Target:
    """A request by way of a proxy has a whole URL, and the pool is the proxy's."""
    if "://" in url:
        parts = urlsplit(url)
        return _Target(parts.scheme, parts.hostname or "", parts.port)
    return _Target(pool.scheme, pool.host.strip("[]"), pool.port)


def _urlopen(original: Callable[..., Any], call_for: CallFor) -> Callable[..., Any]:
    @functools.wraps(original)
    def urlopen(
        pool: Any, method: str, url: str, body: Any = None, headers: Any = None, *args: Any, **named: Any
    ) -> Any:
        merged = dict(pool.headers if headers is None else headers)
        known = {name.lower(): value for name, value in merged.items() if isinstance(name, str)}
        call = call_for(method, _target(pool, url), str(known.get(ours.PROGRAM_ID, "")))
        if call is None:
            return original(pool, method, url, body, headers, *args, **named)
        merged.update({name: value for name, value in call.headers.items() if name not in known})
        try:
            with sending():
                response = original(pool, method, url, body, merged, *args, **named)
        except BaseException:
            call.end()
            raise
        if 200 <= response.status < 300:
            call.answered(response.headers.get(ours.CALL_ID, ""))
        _end_with(response, call.end)
        return response

    return urlopen


def _end_with(response: Any, end: Callable[[], None]) -> None:
    """urllib3 releases the connection at the end of the body."""
    weakref.finalize(response, end)
    if getattr(response, "connection", None) is None:
        end()
        return
    to = weakref.ref(response)

    def release_conn() -> None:
        end()
        found = to()
        if found is not None:
            type(found).release_conn(found)

    response.release_conn = release_conn
