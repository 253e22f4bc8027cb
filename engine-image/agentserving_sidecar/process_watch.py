"""What Linux says of the engine process: is it stopped, and does it use the CPU? The only module that reads /proc.

In a pod the containers usually have PID namespaces of their own; then the process cannot be seen, and heartbeats and
the length of steps decide alone.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

# Share of one CPU that counts as computing. A heartbeat thread uses a thousandth.
COMPUTING_SHARE = 0.2
# The share is measured over at least this time, microseconds.
WINDOW_US = 1_000_000
# Each report of an engine asks, hundreds of times a second; a look reads a file of /proc.
LOOK_EVERY_US = 100_000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_UCRED = struct.Struct("3i")  # pid, uid, gid (unix(7))


@dataclass(frozen=True, slots=True)
class Usage:
    """State letter of proc(5), and the CPU time used so far, microseconds."""

    state: str
    cpu_us: int


def peer_pid(connection: socket.socket) -> int:
    """PID of the process at the other end of a Unix socket, in our PID namespace; 0 when it is in none we see."""
    try:
        pid, _, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except (AttributeError, OSError):
        return 0
    return int(pid)


def usage(pid: int) -> Usage | None:
    """None when the process cannot be seen."""
    try:
        # The command's name, in parentheses, may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    user, system = int(fields[11]), int(fields[12])
    return Usage(fields[0], (user + system) * 1_000_000 // _TICKS_PER_S)


class ProcessWatch:
    """Successive looks at one process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before: tuple[int, int] | None = None
        self._looked_us: int | None = None
        self.is_stopped = False
        self.is_computing: bool | None = None

    def look(self, now_us: int) -> None:
        """Updates both answers; those of a moment ago stay."""
        if self._looked_us is not None and now_us - self._looked_us < LOOK_EVERY_US:
            return
        self._looked_us = now_us
        found = usage(self._pid) if self._pid else None
        if found is None:
            self._before, self.is_stopped, self.is_computing = None, False, None
            return
        # T: stopped by a signal; t: by a debugger.
        self.is_stopped = found.state in "Tt"
        if self._before is None:
            self._before = (now_us, found.cpu_us)
            return
        since_us, cpu_us = now_us - self._before[0], found.cpu_us - self._before[1]
        if since_us >= WINDOW_US:
            self.is_computing = cpu_us >= COMPUTING_SHARE * since_us
            self._before = (now_us, found.cpu_us)
