"""`agentserving up`: runs a cluster. Ctrl-C, SIGTERM and SIGHUP end it gracefully, a second one immediately."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from agentserving_cli.local.cluster import LocalCluster
from agentserving_cli.local.layout import ClusterSpec

INTERRUPTED = 130


class GaveUpError(RuntimeError):
    """The cluster cannot go on; the message is the reason."""


async def run_up(spec: ClusterSpec, console: Console) -> int:
    """Exit status: 0 after a run, INTERRUPTED when it was ended before it was up."""
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[None] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, signals.put_nowait, None)
    began = time.monotonic()

    def tell(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.1f}s[/dim]  ", end="")
        # No markup: the text may quote a log.
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    cluster = LocalCluster(spec, tell)
    stop_requested = asyncio.create_task(signals.get())
    start = asyncio.create_task(cluster.__aenter__())
    await asyncio.wait({stop_requested, start}, return_when=asyncio.FIRST_COMPLETED)
    if not start.done():
        tell("ending before it is up; repeat to end immediately")
        start.cancel()
        await _or_immediately(cluster, start, signals)
        return INTERRUPTED
    start.result()
    _greet(cluster, console)
    ends: set[asyncio.Future[Any]] = {stop_requested, cluster.failed}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    stop_requested.cancel()
    tell("ending")
    await _or_immediately(cluster, asyncio.create_task(cluster.stop()), signals)
    if cluster.failed.done():
        raise GaveUpError(cluster.failed.result())
    return 0


async def _or_immediately(cluster: LocalCluster, ending: asyncio.Task[Any], signals: asyncio.Queue[None]) -> None:
    again = asyncio.create_task(signals.get())
    await asyncio.wait({ending, again}, return_when=asyncio.FIRST_COMPLETED)
    if not ending.done():
        cluster.kill()
    again.cancel()
    await asyncio.gather(ending, return_exceptions=True)


def _greet(cluster: LocalCluster, console: Console) -> None:
    if not cluster.spec.auth:
        console.print(
            "\n[bold red]No authentication[/bold red] (--no-auth): anyone who reaches its ports may use it, "
            "read and cancel every program, and change the policy.", highlight=False, soft_wrap=True,
        )  # fmt: skip
    console.print("\n[bold]Ready.[/bold] Point any OpenAI or Anthropic client at it:")
    key = cluster.key("client") or "none"
    for name, value in (
        ("OPENAI_BASE_URL", cluster.gateway_url),
        ("OPENAI_API_KEY", key),
        ("ANTHROPIC_BASE_URL", cluster.gateway_url.removesuffix("/v1")),
        ("ANTHROPIC_API_KEY", key),
        ("AGENTSERVING_CONTROL_PLANE", cluster.control_plane),
        ("AGENTSERVING_GATEWAY", cluster.gateway_url),
    ):
        console.print(f"  export {name}={value}", highlight=False, soft_wrap=True)
    if proxy := proxy_in_the_way(os.environ):
        console.print(
            f"  export no_proxy={proxy}   [dim]# your proxy does not reach this machine[/dim]", highlight=False
        )
    console.print(
        f"Model: {cluster.spec.model}. Or let a command be one program: agentserving run -- claude", highlight=False
    )
    console.print("See what runs: agentserving top. Ctrl-C ends the cluster.", highlight=False)


def proxy_in_the_way(environment: Mapping[str, str]) -> str:
    """The no_proxy that agents need, when the environment sends them through an HTTP proxy; empty when it does not."""
    names = {name.lower(): value for name, value in environment.items() if value}
    exempt = [host.strip() for host in names.get("no_proxy", "").split(",") if host.strip()]
    if "http_proxy" not in names or any(host in ("*", "127.0.0.1") for host in exempt):
        return ""
    return ",".join([*exempt, "127.0.0.1"])
