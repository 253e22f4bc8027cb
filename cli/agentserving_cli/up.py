"""`agentserving up`: starts a cluster and stays. Ctrl-C, SIGTERM and SIGHUP end it; a second time at once."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

from rich.console import Console

from agentserving_cli.local.cluster import LocalCluster
from agentserving_cli.local.layout import ClusterSpec

INTERRUPTED = 130


class GaveUpError(RuntimeError):
    """A part that the cluster cannot do without does not come up any more."""


async def run_up(spec: ClusterSpec, console: Console) -> int:
    """The exit status: 0 after a run, INTERRUPTED when it was ended before it was up."""
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[None] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, signals.put_nowait, None)
    began = time.monotonic()

    def tell(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.1f}s[/dim]  ", end="")
        # Not markup: the text may quote a log.
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    cluster = LocalCluster(spec, tell)
    asked = asyncio.create_task(signals.get())
    start = asyncio.create_task(cluster.__aenter__())
    await asyncio.wait({asked, start}, return_when=asyncio.FIRST_COMPLETED)
    if not start.done():
        tell("ending before it is up; once more ends at once")
        start.cancel()
        await _or_at_once(cluster, start, signals)
        return INTERRUPTED
    start.result()
    _greet(cluster, console)
    ends: set[asyncio.Future[Any]] = {asked, cluster.failed}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    tell("ending")
    await _or_at_once(cluster, asyncio.create_task(cluster.stop()), signals)
    if cluster.failed.done():
        raise GaveUpError(cluster.failed.result())
    return 0


async def _or_at_once(cluster: LocalCluster, ending: asyncio.Task[Any], signals: asyncio.Queue[None]) -> None:
    again = asyncio.create_task(signals.get())
    await asyncio.wait({ending, again}, return_when=asyncio.FIRST_COMPLETED)
    if not ending.done():
        cluster.kill()
    again.cancel()
    await asyncio.gather(ending, return_exceptions=True)


def _greet(cluster: LocalCluster, console: Console) -> None:
    console.print("\n[bold]Ready.[/bold] Point any OpenAI client at it:")
    for name, value in (
        ("OPENAI_BASE_URL", cluster.gateway_url),
        ("OPENAI_API_KEY", "none"),
        ("AGENTSERVING_CONTROL_PLANE", cluster.control_plane),
    ):
        console.print(f"  export {name}={value}", highlight=False, soft_wrap=True)
    console.print(f"Model: {cluster.spec.model}. See who runs: agentserving top. Ctrl-C ends it.", highlight=False)
