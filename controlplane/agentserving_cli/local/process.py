"""One child process of the supervisor: its log, its readiness, its end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG = 1
STOP_BOUND_S = 15.0


class StartFailedError(RuntimeError):
    """A component did not come up; the message holds the reason from its own log."""


def _die_with_parent() -> None:
    """In the child: no supervisor, no cluster. Linux only; elsewhere the process group does it on Ctrl-C."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(slots=True)
class Child:
    """`ready` is asked again and again until it is true or the deadline passes."""

    name: str
    argv: list[str]
    env: Mapping[str, str]
    log: Path
    ready: Callable[[], Awaitable[bool]]
    start_bound_s: float = 30.0
    process: asyncio.subprocess.Process | None = field(default=None)
    restarts: int = 0

    async def start(self) -> None:
        """Starts the process; does not wait for it."""
        with self.log.open("ab") as out:
            self.process = await asyncio.create_subprocess_exec(
                *self.argv,
                stdout=out,
                stderr=out,
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, **self.env},
                preexec_fn=_die_with_parent,
            )

    async def wait_ready(self) -> None:
        """Until it serves. StartFailedError when it ends first or takes too long."""
        deadline = asyncio.get_running_loop().time() + self.start_bound_s
        while not await self.ready():
            if self.process is not None and self.process.returncode is not None:
                raise StartFailedError(f"{self.name} ended with code {self.process.returncode}: {self.reason()}")
            if asyncio.get_running_loop().time() > deadline:
                raise StartFailedError(f"{self.name} is not up after {self.start_bound_s:.0f} s: {self.reason()}")
            await asyncio.sleep(0.1)

    def reason(self) -> str:
        """The line of the log that tells most: the last error, else the last line."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if "Error" in line or "ERROR" in line or '"level": "error"' in line]
        return f"{(telling or lines or ['it said nothing'])[-1].strip()}\n  log: {self.log}"

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL to the whole group when that is not heard."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_BOUND_S)
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        await process.wait()
