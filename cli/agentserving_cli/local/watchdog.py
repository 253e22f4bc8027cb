"""``python -m agentserving_cli.local.watchdog``: ends the cluster when its supervisor died without ending it.

The supervisor writes ``+GROUP`` and ``-GROUP`` lines, one for each process group, to the watchdog's standard input. Its
end of that pipe closes however it dies. Then every remaining group gets SIGTERM, and SIGKILL some seconds later: a vLLM
that is loading its model does not react to SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

GRACE_S = 4.0


def _signal(groups: Iterable[int], number: int) -> list[int]:
    """Sends a signal to groups (0 only checks); gives those that still exist."""
    alive = []
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            alive.append(group)
    return alive


def main() -> None:
    """Runs until the pipe closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    alive = _signal(groups, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while alive and time.monotonic() < deadline:
        time.sleep(0.1)
        alive = _signal(alive, 0)
    _signal(alive, signal.SIGKILL)


class Watchdog:
    """The supervisor's end of the pipe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agentserving_cli.local.watchdog"],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def watch(self, group: int) -> None:
        """A process group that must not outlive the supervisor."""
        self._write(f"+{group}\n")

    def forget(self, group: int) -> None:
        """A group that has ended; its number may be used again. 0 = none was started."""
        if group:
            self._write(f"-{group}\n")

    def close(self) -> None:
        """Ends the groups that are still watched, and the watchdog. Blocks for GRACE_S seconds at most."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        # A watchdog that was killed is no reason to end the cluster.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line)
            self._process.stdin.flush()


if __name__ == "__main__":
    main()
