"""Notices the end of the body of an httpx response, at no cost per chunk: only closing is observed."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any


def library_of(kind: type[Any]) -> Any:
    """The module httpx or httpx2 that a class, or one of its bases, is of."""
    roots = (cls.__module__.partition(".")[0] for cls in kind.__mro__)
    return sys.modules[next(root for root in roots if root.startswith("httpx"))]


def observed(response: Any, on_end: Callable[[], None]) -> Any:
    """The response's stream; `on_end` is called when it is closed, which httpx does at its end, or collected."""
    library = library_of(type(response))
    return _stream_class(library.SyncByteStream, library.AsyncByteStream)(response.stream, on_end)


@functools.cache
def _stream_class(sync_base: Any, async_base: Any) -> Any:
    """httpx requires streams of its own classes, and httpx and httpx2 each have theirs."""

    class ObservedStream(sync_base, async_base):  # type: ignore[misc]
        def __init__(self, stream: Any, on_end: Callable[[], None]) -> None:
            self._stream, self._on_end = stream, on_end

        def __iter__(self) -> Iterator[bytes]:
            found: Iterator[bytes] = iter(self._stream)
            return found

        def __aiter__(self) -> AsyncIterator[bytes]:
            found: AsyncIterator[bytes] = self._stream.__aiter__()
            return found

        def close(self) -> None:
            self._on_end()
            self._stream.close()

        async def aclose(self) -> None:
            self._on_end()
            await self._stream.aclose()

        def __del__(self) -> None:
            self._on_end()

    return ObservedStream
