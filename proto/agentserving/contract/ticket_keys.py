"""Keys of tickets, read from files that are replaced while in use. Needs the standard library only.

`<name>` signs. `<name>.next` will sign later and `<name>.previous` did before; tickets signed with either are accepted,
so processes that read the files at slightly different times understand each other. The operator rotates the files.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from agentserving.contract.replaced_files import settled

MIN_KEY_BYTES = 16
# Checking the files on every call would cost a system call each; a kubelet takes a minute or two to update them anyway.
LOOK_EVERY_S = 1.0


class TicketKeys:
    """Calling it returns the current keys, the signing key first."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when a file cannot be read, ValueError when a key is too short."""
        self._paths = (path, *(path.with_name(f"{path.name}.{which}") for which in ("next", "previous")))
        self._read_at_s = time.monotonic()
        self._keys = self._read()

    def __call__(self) -> tuple[bytes, ...]:
        """At least one key. Files that have become unreadable leave the keys unchanged."""
        now_s = time.monotonic()
        if now_s - self._read_at_s >= LOOK_EVERY_S:
            self._read_at_s = now_s
            with contextlib.suppress(OSError, ValueError):
                self._keys = self._read()
        return self._keys

    def _read(self) -> tuple[bytes, ...]:
        return settled(self._read_once)

    def _read_once(self) -> tuple[bytes, ...]:
        signing, *others = self._paths
        keys = [signing.read_bytes(), *(path.read_bytes() for path in others if path.exists())]
        short = [len(key) for key in keys if len(key) < MIN_KEY_BYTES]
        if short:
            raise ValueError(f"needs at least {MIN_KEY_BYTES} bytes, has {short[0]}")
        return tuple(keys)
