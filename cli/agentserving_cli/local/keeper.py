"""Starts a component again when it ends and says why it ended; gives up when it does not come up any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentserving_cli.local.leash import Leash
from agentserving_cli.local.process import Child, StartFailedError

MAX_FAILED_STARTS = 4
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.2, 5.0


async def keep(child: Child, leash: Leash, tell: Callable[[str], None], gave_up: Callable[[Child, str], None]) -> None:
    """For ever, or until MAX_FAILED_STARTS starts in a row have come to nothing."""
    failed = 0
    while True:
        told = await _end_of(child, leash)
        while True:
            if failed >= MAX_FAILED_STARTS:
                gave_up(child, f"{child.name} does not come up any more, {failed} starts failed. The last: {told}")
                return
            tell(f"{told}\n  {child.name} is started again")
            await asyncio.sleep(min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**failed))
            try:
                await child.start()
                assert child.process is not None
                leash.hold(child.process.pid)
                await child.wait_ready()
            except StartFailedError as error:
                told = str(error)
                failed += 1
                await child.stop()
                if child.process is not None:
                    leash.release(child.process.pid)
                continue
            failed = 0
            tell(f"{child.name} is up again")
            break


async def _end_of(child: Child, leash: Leash) -> str:
    assert child.process is not None
    await child.process.wait()
    told = child.report()
    # vLLM's engine core may have outlived its API server.
    child.kill()
    leash.release(child.process.pid)
    return told
