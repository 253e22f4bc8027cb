"""Restarts a component when it ends, says why it ended, and gives up when it does not come up any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentserving.transport.backoff import Backoff

from agentserving_cli.local.process import Child, StartFailedError
from agentserving_cli.local.watchdog import Watchdog

MAX_FAILED_STARTS = 4
RESTART = Backoff(first_s=0.2, max_s=5.0)


async def supervise(
    child: Child, watchdog: Watchdog, tell: Callable[[str], None], give_up: Callable[[Child, str], None]
) -> None:
    """Runs until it is cancelled, or MAX_FAILED_STARTS starts in a row have failed."""
    while True:
        reason = await _end_of(child, watchdog)
        failed_starts = 0
        while reason:
            if failed_starts >= MAX_FAILED_STARTS:
                give_up(child, f"{child.name} does not come up any more, {failed_starts} starts failed. "
                        f"The last: {reason}")  # fmt: skip
                return
            tell(f"{reason}\n  restarting {child.name}")
            await asyncio.sleep(RESTART.delay_s(failed_starts + 1))
            reason = await _restart(child, watchdog)
            failed_starts += 1
        tell(f"{child.name} is up again")


async def _restart(child: Child, watchdog: Watchdog) -> str:
    """Why it did not come up; empty when it serves."""
    try:
        await child.start()
        watchdog.watch(child.group)
        await child.wait_ready()
    except StartFailedError as error:
        await child.stop()
        watchdog.forget(child.group)
        return str(error)
    return ""


async def _end_of(child: Child, watchdog: Watchdog) -> str:
    """Waits for the end of the process; gives the reason."""
    await child.ended()
    reason = child.report()
    # vLLM's engine core may have outlived its API server.
    child.kill()
    watchdog.forget(child.group)
    return reason
