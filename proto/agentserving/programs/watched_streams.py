"""Tells when the body of an httpx response has ended, at no cost per chunk: only closing is looked at."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any


def watch(response: Any, ended: Callable[[], None]) -> Any:
    """The response's stream; `ended` is called when it is closed, which httpx does at its end, or thrown away."""
    roots = (cls.__module__.partition(".")[0] for cls in type(response).__mro__)
    library = sys.modules[next(root for root in roots if root.startswith("httpx"))]
    return _stream_class(library.SyncByteStream, library.AsyncByteStream)(response.stream, ended)


@functools.cache
def _stream_class(sync_base: Any, async_base: Any) -> Any:
    """httpx asks that a stream be of its own class, and httpx and httpx2 have each their own."""

    class WatchedStream(sync_base, async_base):  # type: ignore[misc]
        def __init__(self, stream: Any, ended: Callable[[], None]) -> None:
            self._stream, self._ended = stream, ended

        def __iter__(self) -> Iterator[bytes]:
            found: Iterator[bytes] = iter(self._stream)
            return found

        def __aiter__(self) -> AsyncIterator[bytes]:
            found: AsyncIterator[bytes] = self._stream.__aiter__()
            return found

        def close(self) -> None:
            self._ended()
            self._stream.close()

        async def aclose(self) -> None:
            self._ended()
            await self._stream.aclose()

        def __del__(self) -> None:
            self._ended()

    return WatchedStream
