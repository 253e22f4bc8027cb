"""Processes on one core under SCHED_RR, and the CPU time they take.

On a machine that does other work, ordinary scheduling adds 10 ms to a P99; under SCHED_RR the other work waits instead.
The kernel takes 5 % of each second from such processes, so a figure at saturation is at most 5 % too low.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

PRIORITY = 5
STOP_S = 6.0


def pin(core: int) -> None:
    """This process and its descendants run on `core`, under SCHED_RR where that is permitted."""
    os.sched_setaffinity(0, {core})
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))


def launch(argv: Sequence[str], *, core: int, log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a program in a process group of its own."""
    with log.open("ab") as output:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **env},
            start_new_session=True, preexec_fn=lambda: pin(core),
        )  # fmt: skip


def stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """SIGTERM to their groups; SIGKILL after STOP_S."""
    ours = list(processes)
    ends = time.monotonic() + STOP_S
    for process in ours:
        _signal(process, signal.SIGTERM)
    for process in ours:
        try:
            process.wait(max(0.1, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()
        # What the program left behind in its group.
        _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _family(pid: int) -> list[int]:
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [each for child in children.read_text().split() for each in _family(int(child))]
        except OSError:
            continue
    return found


def cpu_ms(pid: int) -> float:
    """CPU time of a process, its threads and its descendants. Threads that have ended are not counted."""
    total_ns = 0
    for each in _family(pid):
        for schedstat in Path(f"/proc/{each}/task").glob("*/schedstat"):
            try:
                total_ns += int(schedstat.read_text().split()[0])
            except OSError:
                continue
    return total_ns / 1e6
