"""Hooks by which httpx requests carry the program: `instrument()` for the whole process, `attach()` for one client.

The OpenAI, Anthropic and LangChain SDKs and the OpenAI Agents SDK all speak through httpx, or, in their newer versions,
through its successor httpx2; both are taken as they come. `instrument()` wraps `handle_request` of the two classes that
really send, HTTPTransport and AsyncHTTPTransport, as OpenTelemetry does. Sentry wraps `Client.send` instead, and that
would not do here: httpx follows redirects inside of `send` and copies the headers to whatever host it is sent to, while
a transport sees every hop by itself, after the host is known. The caller's request is never changed: what goes out is a
copy with our headers, so neither a retry nor a redirect carries old ids along. No class is replaced and no client
looks different.

Transports that do not derive from those two (the aiohttp ones, for example) are not seen. For them, and for those who
want nothing process-wide, `attach(client)` uses the client's own event hooks, which are public. They run per hop, too,
but they must write into the request, so ours are taken out again when a hop leads elsewhere.

Headers that the user has set win; a request that names a program of its own is left alone altogether.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from agentserving.programs import context, headers
from agentserving.programs.context import CarriedCall
from agentserving.programs.gateways import Gateways
from agentserving.programs.watched_streams import watch

LIBRARIES = ("httpx", "httpx2")
# In a request's extensions: who made it a call, the call, and the headers that were put into it.
_MARK = "agentserving.call"

HttpxClient = TypeVar("HttpxClient")
Send = Callable[[Any, Any], Any]
AsyncSend = Callable[[Any, Any], Awaitable[Any]]


def _call_for(request: Any, gateways: Gateways) -> CarriedCall | None:
    """The call that a request is; None when it is no call of ours, or is one already."""
    at = context.current_point()
    if at is None or request.method != "POST" or _MARK in request.extensions or not gateways.include(request.url):
        return None
    if request.headers.get(headers.PROGRAM_ID, at.thread.tracker.program_id) != at.thread.tracker.program_id:
        return None
    return context.begin_call()


def _missing(request: Any, call: CarriedCall) -> dict[str, str]:
    return {name: value for name, value in call.headers.items() if name not in request.headers}


def _marked(request: Any, call: CarriedCall) -> Any:
    """A copy of the request with our headers; the body is shared."""
    merged = request.headers.copy()
    merged.update(_missing(request, call))
    return type(request)(
        request.method,
        request.url,
        headers=merged,
        stream=request.stream,
        extensions={**request.extensions, _MARK: (None, call, ())},
    )


def _answered(response: Any, call: CarriedCall) -> Any:
    if response.is_success:
        call.answered(response.headers.get(headers.CALL_ID, ""))
    response.stream = watch(response, call.end)
    return response


# -- the whole process ---------------------------------------------------------------------------------------------


class _Instrumentation:
    """What is wrapped, and for which gateways. A wrapper that others have wrapped in turn stays and does nothing."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.gateways: Gateways | None = None
        self.wrapped: list[tuple[type[Any], str, Any, Any]] = []

    def wrap(self, owner: type[Any], method: str) -> None:
        """Once per class."""
        original = getattr(owner, method)
        if any(found is owner for found, *_ in self.wrapped):
            return
        wrapper = self._async(original) if inspect.iscoroutinefunction(original) else self._sync(original)
        setattr(owner, method, wrapper)
        self.wrapped.append((owner, method, original, wrapper))

    def _sync(self, original: Send) -> Send:
        @functools.wraps(original)
        def handle_request(transport: Any, request: Any) -> Any:
            call = _call_for(request, self.gateways) if self.gateways is not None else None
            if call is None:
                return original(transport, request)
            try:
                return _answered(original(transport, _marked(request, call)), call)
            except BaseException:
                call.end()
                raise

        return handle_request

    def _async(self, original: AsyncSend) -> AsyncSend:
        @functools.wraps(original)
        async def handle_async_request(transport: Any, request: Any) -> Any:
            call = _call_for(request, self.gateways) if self.gateways is not None else None
            if call is None:
                return await original(transport, request)
            try:
                return _answered(await original(transport, _marked(request, call)), call)
            except BaseException:
                call.end()
                raise

        return handle_async_request


_instrumentation = _Instrumentation()


def instrument(*, base_urls: str | Iterable[str] = ()) -> None:
    """From now on every httpx request to our gateway carries the current program. Again: only `base_urls` change.

    `base_urls`: which requests are for our gateway, by scheme, host and port; by default AGENTSERVING_GATEWAY, else
    OPENAI_BASE_URL and ANTHROPIC_BASE_URL, as they are when the request is made. ModuleNotFoundError without httpx.
    """
    gateways = Gateways.of(base_urls)
    found = [importlib.import_module(name) for name in LIBRARIES if importlib.util.find_spec(name) is not None]
    if not found:
        raise ModuleNotFoundError("agentserving.instrument() needs httpx or httpx2: no SDK that uses one is installed")
    with _instrumentation.lock:
        _instrumentation.gateways = gateways
        for library in found:
            _instrumentation.wrap(library.HTTPTransport, "handle_request")
            _instrumentation.wrap(library.AsyncHTTPTransport, "handle_async_request")


def uninstrument() -> None:
    """Undoes `instrument()`; calls on their way are not disturbed."""
    with _instrumentation.lock:
        _instrumentation.gateways = None
        kept = []
        for owner, method, original, wrapper in _instrumentation.wrapped:
            if owner.__dict__.get(method) is wrapper:
                setattr(owner, method, original)
            else:
                kept.append((owner, method, original, wrapper))
        _instrumentation.wrapped = kept


# -- one client ----------------------------------------------------------------------------------------------------


class _Attached:
    """The hooks of one `attach`. Two of them on one client leave each other's calls alone."""

    def __init__(self, gateways: Gateways) -> None:
        self._gateways = gateways

    def before(self, request: Any) -> None:
        """A request, or one hop of it, is about to go out."""
        self._take_out(request)
        call = _call_for(request, self._gateways)
        if call is not None:
            ours = _missing(request, call)
            request.headers.update(ours)
            request.extensions = {**request.extensions, _MARK: (self, call, tuple(ours))}
            # An attempt that fails before its answer tells no hook: then the call ends with its request.
            weakref.finalize(request, call.end)

    def after(self, response: Any) -> None:
        """The head of its answer has come."""
        owner, call, _ = response.request.extensions.get(_MARK, (None, None, ()))
        if owner is self:
            _answered(response, call)

    def _take_out(self, request: Any) -> None:
        """A request that was redirected, or is sent again, begins without what we put into it before."""
        owner, call, ours = request.extensions.get(_MARK, (None, None, ()))
        if owner is self:
            call.end()
            for name in ours:
                request.headers.pop(name, None)
            request.extensions = {key: value for key, value in request.extensions.items() if key != _MARK}

    async def before_async(self, request: Any) -> None:
        """As `before`."""
        self.before(request)

    async def after_async(self, response: Any) -> None:
        """As `after`."""
        self.after(response)


def attach(client: HttpxClient, *, base_urls: str | Iterable[str] = ()) -> HttpxClient:
    """The same httpx client, sync or async, whose calls carry the current program from now on; for `http_client=`.

    `base_urls`: as in `instrument`.
    """
    target: Any = client
    hooks = _Attached(Gateways.of(base_urls))
    is_async = hasattr(target, "aclose")
    target.event_hooks = {
        "request": [*target.event_hooks["request"], hooks.before_async if is_async else hooks.before],
        "response": [*target.event_hooks["response"], hooks.after_async if is_async else hooks.after],
    }
    return client
