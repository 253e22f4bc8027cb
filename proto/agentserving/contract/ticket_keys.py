"""The keys of tickets: files that are replaced while they are in use. Needs the standard library only.

`<name>` signs. `<name>.next` will, and `<name>.previous` did: tickets of either are good, so whoever reads the files a
little later or earlier than others understands them all the same. Who replaces them is the operator's business.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from agentserving.contract.replaced_files import settled

MIN_KEY_BYTES = 16
# A kubelet takes a minute or two to bring new ones, and a call should not look at files.
LOOK_EVERY_S = 1.0


class TicketKeys:
    """Called, it gives the keys: first the one that signs."""

    def __init__(self, path: Path) -> None:
        """OSError when it cannot be read; ValueError when it is too short."""
        self._paths = (path, *(path.with_name(f"{path.name}.{which}") for which in ("next", "previous")))
        self._looked_at_s = time.monotonic()
        self._keys = self._read()

    def __call__(self) -> tuple[bytes, ...]:
        """At least one. What cannot be read any more stays as it was."""
        now_s = time.monotonic()
        if now_s - self._looked_at_s >= LOOK_EVERY_S:
            self._looked_at_s = now_s
            with contextlib.suppress(OSError, ValueError):
                self._keys = self._read()
        return self._keys

    def _read(self) -> tuple[bytes, ...]:
        return settled(self._once)

    def _once(self) -> tuple[bytes, ...]:
        signing, *others = self._paths
        found = [signing.read_bytes(), *(path.read_bytes() for path in others if path.exists())]
        short = [len(key) for key in found if len(key) < MIN_KEY_BYTES]
        if short:
            raise ValueError(f"needs at least {MIN_KEY_BYTES} bytes, has {short[0]}")
        return tuple(found)
