"""Disk space kept in reserve, so that acknowledged reports can be deleted while the disk is full.

Deleting rows of a database needs some space before it frees any: for the write-ahead log, and for copying it into the
database.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# More than the largest WAL (MAX_WAL_BYTES and one batch of reports), whose pages may all be new to the database file.
RESERVE_BYTES = 768 << 10


class SpaceReserve:
    """A file of RESERVE_BYTES that is emptied when its space is needed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def allocate(self) -> bool:
        """Allocates the file's blocks; False when the disk has too little space for it now."""
        try:
            with self._path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError:
            # A part of it would take space from the reports.
            self.release()
            return False
        return True

    def release(self) -> None:
        """Gives the space back to the file system; needs none itself."""
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self._path, 0)
