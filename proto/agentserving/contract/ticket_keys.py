"""Keys of tickets, read from files that are replaced while in use.

`<name>` signs. `<name>.next` will sign later and `<name>.previous` did before; tickets signed with either are accepted,
so processes that read the files at slightly different times understand each other. The operator rotates the files.
Who signs reads secrets (`signing_keys`); engines read the public keys that belong to them (`verifying_keys`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from agentserving.contract.replaced_files import settled
from agentserving.contract.signatures import SigningKey, VerifyingKey, signing_key, verifying_key

# Checking the files on every call would cost a system call each; a kubelet takes a minute or two to update them anyway.
LOOK_EVERY_S = 1.0

K = TypeVar("K")


class TicketKeys(Generic[K]):
    """Calling it returns the current keys, the one in use first."""

    def __init__(self, path: Path, load: Callable[[bytes], K]) -> None:
        """Raises OSError when a file cannot be read, ValueError when it holds no key."""
        self._paths = (path, *(path.with_name(f"{path.name}.{which}") for which in ("next", "previous")))
        self._load = load
        self._read_at_s = time.monotonic()
        self._contents: tuple[bytes, ...] = ()
        self._keys: tuple[K, ...] = ()
        self._read()

    def __call__(self) -> tuple[K, ...]:
        """At least one key. Files that have become unreadable leave the keys unchanged."""
        now_s = time.monotonic()
        if now_s - self._read_at_s >= LOOK_EVERY_S:
            self._read_at_s = now_s
            with contextlib.suppress(OSError, ValueError):
                self._read()
        return self._keys

    def _read(self) -> None:
        contents = settled(self._read_once)
        if contents != self._contents:
            self._keys = tuple(self._load(each) for each in contents)
            self._contents = contents

    def _read_once(self) -> tuple[bytes, ...]:
        used, *others = self._paths
        return (used.read_bytes(), *(path.read_bytes() for path in others if path.exists()))


def signing_keys(path: Path) -> TicketKeys[SigningKey]:
    """The secrets of who signs. Raises OSError, ValueError."""
    return TicketKeys(path, signing_key)


def verifying_keys(path: Path) -> TicketKeys[VerifyingKey]:
    """The public keys of a signer. Raises OSError, ValueError."""
    return TicketKeys(path, verifying_key)
