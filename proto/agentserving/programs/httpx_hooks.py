"""Hooks that make httpx requests carry the program: `instrument()` for the whole process, `attach()` for one client.

The OpenAI, Anthropic, LangChain, LiteLLM and OpenAI Agents SDKs all use httpx or its successor httpx2. `instrument()`
wraps `handle_request` of the classes that really send: HTTPTransport, AsyncHTTPTransport (as OpenTelemetry does), and
the aiohttp transports of LiteLLM and httpx-aiohttp. Those are wrapped when their class is defined, because importing
LiteLLM takes seconds and often happens after `instrument()`. Sentry wraps `Client.send` instead, which would not do
here: httpx follows redirects inside of `send` and copies the headers to every host, while a transport sees each hop by
itself, after the host is known. The caller's request is never changed: what is sent is a copy with our headers, so
neither a retry nor a redirect carries old ids along. No class is replaced and no client looks different.
`aiohttp_hooks`, `urllib3_hooks` and `thread_hooks` have what `instrument()` wraps besides httpx.

For other transports, and for users who want nothing process-wide, `attach(client)` uses the client's own event hooks,
which are public. They run per hop as well, but must write into the request, so our headers are removed again when a hop
leads elsewhere.

Headers set by the user win; a request that names another program is left alone.
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

from agentserving.programs import aiohttp_hooks, headers, thread_hooks, urllib3_hooks
from agentserving.programs.carrying import Call, Patch, call_for, sending
from agentserving.programs.gateways import Gateways, Url
from agentserving.programs.response_body import library_of as _library
from agentserving.programs.response_body import observed

LIBRARIES = ("httpx", "httpx2")
OTHERS = {"aiohttp": aiohttp_hooks, "urllib3": urllib3_hooks}
# Key in a request's extensions: the hooks that made it a call, the call, and the headers that were added.
_MARK = "agentserving.call"

HttpxClient = TypeVar("HttpxClient")
Send = Callable[[Any, Any], Any]
AsyncSend = Callable[[Any, Any], Awaitable[Any]]


def _call_for(request: Any, gateways: Gateways | None) -> Call | None:
    """The call that a request becomes; None for a request to others, and for one that is a call already."""
    if gateways is None or _MARK in request.extensions:
        return None
    return call_for(gateways, request.method, request.url, request.headers.get(headers.PROGRAM_ID, ""))


def _missing(request: Any, call: Call) -> dict[str, str]:
    return {name: value for name, value in call.headers.items() if name not in request.headers}


def _marked(request: Any, call: Call) -> Any:
    """A copy of the request with our headers; the body is shared."""
    merged = request.headers.copy()
    merged.update(_missing(request, call))
    try:
        # Read already: transports that look at `content` must find it in the copy, too.
        body = {"content": request.content}
    except _library(type(request)).RequestNotRead:
        body = {"stream": request.stream}
    extensions = {**request.extensions, _MARK: (None, call, ())}
    return type(request)(request.method, request.url, headers=merged, extensions=extensions, **body)


def _answered(response: Any, call: Call) -> Any:
    if response.is_success:
        call.answered(response.headers.get(headers.CALL_ID, ""))
    response.stream = observed(response, call.end)
    return response


# -- the whole process ---------------------------------------------------------------------------------------------


class _Instrumentation:
    """The wrapped classes, and the gateways. A wrapper that was wrapped again by others stays and does nothing."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.gateways: Gateways | None = None
        self.wrapped: list[tuple[type[Any], str, Any, Any]] = []

    def wrap(self, owner: type[Any], method: str) -> None:
        """Wraps a method of httpx, once per class."""
        self.patch((owner, method, self._async if inspect.iscoroutinefunction(getattr(owner, method)) else self._sync))

    def patch(self, patch: Patch) -> None:
        """Wraps a method, once per class."""
        owner, method, wrapped = patch
        if any(found is owner for found, *_ in self.wrapped):
            return
        original = getattr(owner, method)
        wrapper = wrapped(original)
        setattr(owner, method, wrapper)
        self.wrapped.append((owner, method, original, wrapper))

    def call_for(self, method: str, url: Url, named: str) -> Call | None:
        """For the hooks of other libraries."""
        return None if self.gateways is None else call_for(self.gateways, method, url, named)

    def wrap_aiohttp(self, base: type[Any]) -> None:
        """Wraps the aiohttp transports among the subclasses of AsyncBaseTransport, now and when one is defined."""
        for cls in _subclasses(base):
            self._wrap_if_aiohttp(cls)
        if any(found is base for found, *_ in self.wrapped):
            return
        original = base.__dict__.get("__init_subclass__")

        def __init_subclass__(cls: type[Any], /, **options: Any) -> None:
            super(base, cls).__init_subclass__(**options)
            if self.gateways is not None:
                self._wrap_if_aiohttp(cls)

        wrapper = classmethod(__init_subclass__)
        base.__init_subclass__ = wrapper  # type: ignore[assignment] # mypy wants the bound method
        self.wrapped.append((base, "__init_subclass__", original, wrapper))

    def _wrap_if_aiohttp(self, cls: type[Any]) -> None:
        if "aiohttp" in cls.__name__.lower() and "handle_async_request" in cls.__dict__:
            self.wrap(cls, "handle_async_request")

    def _sync(self, original: Send) -> Send:
        @functools.wraps(original)
        def handle_request(transport: Any, request: Any) -> Any:
            call = _call_for(request, self.gateways)
            if call is None:
                return original(transport, request)
            try:
                with sending():
                    response = original(transport, _marked(request, call))
                return _answered(response, call)
            except BaseException:
                call.end()
                raise

        return handle_request

    def _async(self, original: AsyncSend) -> AsyncSend:
        @functools.wraps(original)
        async def handle_async_request(transport: Any, request: Any) -> Any:
            call = _call_for(request, self.gateways)
            if call is None:
                return await original(transport, request)
            try:
                with sending():
                    response = await original(transport, _marked(request, call))
                return _answered(response, call)
            except BaseException:
                call.end()
                raise

        return handle_async_request


def _subclasses(base: type[Any]) -> list[type[Any]]:
    return [found for cls in base.__subclasses__() for found in (cls, *_subclasses(cls))]


_instrumentation = _Instrumentation()


def instrument(*, base_urls: str | Iterable[str] = ()) -> None:
    """Makes every request to the gateway carry the current program, and OS threads carry it along.

    httpx, aiohttp and urllib3 (requests) are covered, http.client is not. A second call only changes `base_urls`.

    base_urls: URLs of gateways, compared by scheme, host and port; by default AGENTSERVING_GATEWAY, else
    OPENAI_BASE_URL and ANTHROPIC_BASE_URL, as they are when the request is made. ModuleNotFoundError without any of
    these libraries.
    """
    gateways = Gateways.of(base_urls)
    found = [importlib.import_module(name) for name in LIBRARIES if importlib.util.find_spec(name) is not None]
    others = [hooks for name, hooks in OTHERS.items() if importlib.util.find_spec(name) is not None]
    if not found and not others:
        names = ", ".join((*LIBRARIES, *OTHERS))
        raise ModuleNotFoundError(f"agentserving.instrument() needs one of {names}: none of them is installed")
    with _instrumentation.lock:
        _instrumentation.gateways = gateways
        for library in found:
            _instrumentation.wrap(library.HTTPTransport, "handle_request")
            _instrumentation.wrap(library.AsyncHTTPTransport, "handle_async_request")
            _instrumentation.wrap_aiohttp(library.AsyncBaseTransport)
        for hooks in (*others, thread_hooks):
            for patch in hooks.patches(_instrumentation.call_for):
                _instrumentation.patch(patch)


def uninstrument() -> None:
    """Undoes `instrument()`; calls in flight are not disturbed."""
    with _instrumentation.lock:
        _instrumentation.gateways = None
        kept = []
        for owner, method, original, wrapper in _instrumentation.wrapped:
            if owner.__dict__.get(method) is wrapper:
                if original is None:
                    delattr(owner, method)
                else:
                    setattr(owner, method, original)
            else:
                kept.append((owner, method, original, wrapper))
        _instrumentation.wrapped = kept


# -- one client ----------------------------------------------------------------------------------------------------


class _Attached:
    """The hooks of one `attach`. Two of them on one client ignore each other's calls."""

    def __init__(self, gateways: Gateways) -> None:
        self._gateways = gateways

    def before(self, request: Any) -> None:
        """A request, or one hop of it, is about to be sent."""
        self._clean(request)
        call = _call_for(request, self._gateways)
        if call is not None:
            ours = _missing(request, call)
            request.headers.update(ours)
            request.extensions = {**request.extensions, _MARK: (self, call, tuple(ours))}
            # No hook is called for an attempt that fails before its response: then the call ends with its request.
            weakref.finalize(request, call.end)

    def after(self, response: Any) -> None:
        """The head of its response has arrived."""
        owner, call, _ = response.request.extensions.get(_MARK, (None, None, ()))
        if owner is self:
            _answered(response, call)

    def _clean(self, request: Any) -> None:
        """Removes our headers from a request that was redirected or is sent again."""
        owner, call, ours = request.extensions.get(_MARK, (None, None, ()))
        if owner is self:
            call.end()
            for name in ours:
                request.headers.pop(name, None)
            request.extensions = {key: value for key, value in request.extensions.items() if key != _MARK}

    async def before_async(self, request: Any) -> None:
        """`before`, as httpx.AsyncClient calls it."""
        self.before(request)

    async def after_async(self, response: Any) -> None:
        """`after`, as httpx.AsyncClient calls it."""
        self.after(response)


def attach(client: HttpxClient, *, base_urls: str | Iterable[str] = ()) -> HttpxClient:
    """Makes the calls of one httpx client carry the current program; returns the client, for `http_client=`.

    base_urls: as in `instrument`.
    """
    target: Any = client
    hooks = _Attached(Gateways.of(base_urls))
    is_async = hasattr(target, "aclose")
    target.event_hooks = {
        "request": [*target.event_hooks["request"], hooks.before_async if is_async else hooks.before],
        "response": [*target.event_hooks["response"], hooks.after_async if is_async else hooks.after],
    }
    return client
