"""Contents of files: a directory, one file under each id. Ids are ours and random, never a client's text.

A file is written under another name and renamed, so that one with its own name is whole. Methods block, so they are for
threads; `writing` alone is for the event loop.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

_INCOMING, _FILES = "incoming", "files"


def new_file_id() -> str:
    return f"file-{secrets.token_hex(16)}"


def new_batch_id() -> str:
    return f"batch_{secrets.token_hex(16)}"


class Contents:
    """Files of one data directory. OSError from all methods."""

    def __init__(self, directory: Path) -> None:
        self._incoming, self._files = directory / _INCOMING, directory / _FILES
        for each in (self._incoming, self._files):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, file_id: str) -> Path:
        """Where the content of a file with a row is."""
        return self._files / file_id

    @asynccontextmanager
    async def writing(self, file_id: str) -> AsyncIterator[IO[bytes]]:
        """A file to write to, in threads: it exists under its id after the block, on the disk; not at all if the block
        fails."""
        scratch = self._incoming / f"{file_id}.{secrets.token_hex(4)}"
        file = await asyncio.to_thread(scratch.open, "xb")
        try:
            yield file
            await asyncio.to_thread(self._finish, file, scratch, file_id)
        finally:
            file.close()
            scratch.unlink(missing_ok=True)

    def _finish(self, file: IO[bytes], scratch: Path, file_id: str) -> None:
        file.flush()
        os.fsync(file.fileno())
        scratch.replace(self.path(file_id))
        handle = os.open(self._files, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def read(self, file_id: str, offset: int, size_bytes: int) -> bytes:
        """A part of a file."""
        with self.path(file_id).open("rb") as file:
            file.seek(offset)
            return file.read(size_bytes)

    def delete(self, file_id: str) -> None:
        """One that is not there is deleted."""
        self.path(file_id).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Ids of all files that are there."""
        return [each.name for each in self._files.iterdir()]

    def clear_incoming(self) -> None:
        """What uploads and batches of an earlier process have left half written."""
        for each in self._incoming.iterdir():
            each.unlink()

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._files).free
