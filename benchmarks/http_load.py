"""A cheap HTTP client: asyncio streams, bodies counted and not parsed, so that the load takes little CPU."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from urllib.parse import urlsplit


class Connection:
    """One keep-alive connection; reconnects after the server has closed it."""

    def __init__(self, url: str, program: str = "") -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._program = program
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: dict[str, Any]) -> float:
        """Seconds until the whole response has arrived. RuntimeError for any status but 200."""
        began = time.perf_counter()
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        data = json.dumps(body).encode()
        program = f"x-agentserving-program-id: {self._program}\r\n" if self._program else ""
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{program}content-type: application/json\r\n"
        self._writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        head_bytes = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in head_bytes.split(b"\r\n")[0]:
            raise RuntimeError(head_bytes.decode())
        if b"content-length:" in head_bytes:
            await self._reader.readexactly(int(head_bytes.split(b"content-length:")[1].split(b"\r\n")[0]))
        else:
            await self._reader.readuntil(b"0\r\n\r\n")
        if b"connection: close" in head_bytes:
            self.close()
        return time.perf_counter() - began

    def close(self) -> None:
        """Closes the connection; the next post opens another."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def completion(tokens: int, *, stream: bool, prompt: str = "hello") -> dict[str, Any]:
    """The body of a completion of exactly `tokens` output tokens."""
    return {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "stream": stream, "ignore_eos": True}


async def drive(url: str, calls: int, concurrency: int, body: dict[str, Any], *, program: str = "") -> float:
    """Seconds for `calls` calls, `concurrency` at a time, in a closed loop; with `program` each worker is a program."""
    remaining = iter(range(calls))

    async def work(index: int) -> None:
        connection = Connection(url, f"{program}-{index}" if program else "")
        for _ in remaining:
            await connection.post("/v1/completions", body)
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(work(index) for index in range(concurrency)))
    return time.perf_counter() - began
