"""``python -m agentserving_cli.local.leash``: ends the cluster when the supervisor is gone without having ended it.

The supervisor writes ``+GROUP`` and ``-GROUP`` lines, one for each process group, into our standard input. Its end of
that pipe closes however it dies. Then every group left gets SIGTERM, and SIGKILL some seconds later: a vLLM that is
loading its model does not hear SIGTERM.
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


def _signal(groups: Iterable[int], number: signal.Signals) -> list[int]:
    alive = []
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            alive.append(group)
    return alive


def main() -> None:
    """Until the pipe closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    alive = _signal(groups, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while alive and time.monotonic() < deadline:
        time.sleep(0.1)
        # Signal 0 only asks whether anybody is left.
        alive = [group for group in alive if _exists(group)]
    _signal(alive, signal.SIGKILL)


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


class Leash:
    """The supervisor's end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agentserving_cli.local.leash"],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def hold(self, group: int) -> None:
        """A group that must not outlive us."""
        self._write(f"+{group}\n")

    def release(self, group: int) -> None:
        """It has ended."""
        self._write(f"-{group}\n")

    def close(self) -> None:
        """Nothing is left to end, or it is ended now."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        # A leash that somebody killed is no reason to end the cluster.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line)
            self._process.stdin.flush()


if __name__ == "__main__":
    main()
