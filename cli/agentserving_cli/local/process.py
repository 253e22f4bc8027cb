"""One child process of the cluster: its log, its readiness, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agentserving_cli.local.ports import port_is_free
from agentserving_cli.local.reason import ending, reason_in

STOP_BOUND_S = 15.0
# The reason of an end is searched in the last bytes of the log.
MAX_LOG_BYTES = 1 << 20


class StartFailedError(RuntimeError):
    """A component did not come up; the message contains the reason from its own log."""


@dataclass(slots=True, kw_only=True)
class Child:
    """A process in a group of its own. `ready` is polled until it is true or `start_bound_s` have passed.

    `ports` are those it listens on.
    """

    name: str
    argv: list[str]
    env: Mapping[str, str]
    log: Path
    ready: Callable[[], Awaitable[bool]]
    start_bound_s: float = 30.0
    ports: tuple[int, ...] = ()
    process: asyncio.subprocess.Process | None = field(default=None)
    # Offset of this boot's first byte in the log.
    boot_at: int = 0

    @property
    def group(self) -> int:
        """Process group of the last start; 0 = never started."""
        return self.process.pid if self.process is not None else 0

    async def ended(self) -> None:
        """Waits for the end of the process."""
        if self.process is not None:
            await self.process.wait()

    async def start(self) -> None:
        """Starts the process and does not wait for it. StartFailedError when a port is taken."""
        for port in self.ports:
            # Another program that answers there would be mistaken for this one.
            if not port_is_free(port):
                raise StartFailedError(f"{self.name} cannot start: another program has taken its port {port}")
        with self.log.open("ab") as out:
            self.boot_at = out.tell()
            try:
                self.process = await asyncio.create_subprocess_exec(
                    *self.argv,
                    stdout=out,
                    stderr=out,
                    stdin=asyncio.subprocess.DEVNULL,
                    env={**os.environ, **self.env},
                    process_group=0,
                )
            except OSError as error:
                raise StartFailedError(f"{self.name} cannot start: {self.argv[0]}: {error.strerror}") from error

    async def wait_ready(self) -> None:
        """Waits until it serves. StartFailedError when it ends first or takes too long."""
        deadline = asyncio.get_running_loop().time() + self.start_bound_s
        while True:
            served = await self.ready()
            if self.process is not None and self.process.returncode is not None:
                raise StartFailedError(self.report())
            if served:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise StartFailedError(f"{self.name} is not up after {self.start_bound_s:.0f} s: {self.reason()}")
            await asyncio.sleep(0.1)

    def report(self) -> str:
        """How and why it ended."""
        code = self.process.returncode if self.process is not None else None
        return f"{self.name} {ending(code)}: {self.reason()}"

    def reason(self) -> str:
        """The line of this boot's log with the root cause, and where the log is."""
        with self.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self.boot_at, size - MAX_LOG_BYTES))
            text = log.read().decode("utf-8", "replace")
        return f"{reason_in(text) or 'its log is empty'}\n  log: {self.log}"

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL to whatever is left of the group after STOP_BOUND_S."""
        process = self.process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_BOUND_S)
        self.kill()
        await process.wait()

    def kill(self) -> None:
        """SIGKILL to the whole group: a process of it may have outlived the one we started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
