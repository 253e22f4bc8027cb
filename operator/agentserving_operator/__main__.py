"""``python -m agentserving_operator``: the operator's only wiring."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import functools
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from typing import Any

import kopf
import structlog
from aiohttp import web
from prometheus_client import generate_latest

from agentserving_operator import control_planes as control_plane
from agentserving_operator import handlers
from agentserving_operator.api_server import Cluster
from agentserving_operator.lease import LostLeaseError, lead
from agentserving_operator.manifests import Images
from agentserving_operator.reconcile import World, reconcile
from agentserving_operator.rounds import Rounds
from agentserving_operator.visits import Visits

log = structlog.get_logger()


def parse(argv: list[str]) -> argparse.Namespace:
    """Flags, each with an environment variable AGENTSERVING_OPERATOR_<FLAG>. Durations in seconds."""
    parser = argparse.ArgumentParser(prog="agentserving-operator", description=__doc__)
    flags: tuple[tuple[str, str | None, type], ...] = (
        ("image", None, str),  # control plane, gateway, sidecar and simulator
        ("vllm-image", None, str),  # vLLM with the plugin
        ("etcd-image", None, str),
        ("image-pull-secrets", "", str),  # names, separated by commas
        ("namespaces", "", str),  # separated by commas; empty = all
        ("kubeconfig", "", str),  # empty = the pod's own account, else the user's
        ("http-host", "0.0.0.0", str),
        ("http-port", "8080", int),
        ("round-s", "30", float),  # every control plane is asked so often; each tenth time all is looked at
        ("stuck-s", "180", float),  # no visit and no round for so long = not alive
        ("lease", "", str),  # namespace/name, where several operators are; empty = this one is alone
    )
    for name, default, kind in flags:
        value = os.environ.get("AGENTSERVING_OPERATOR_" + name.upper().replace("-", "_"), default)
        parser.add_argument(f"--{name}", default=value, required=value is None, type=kind)
    return parser.parse_args(argv)


def now() -> str:
    """RFC 3339, in seconds: what Kubernetes stores."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def names(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(each.strip() for each in text.split(",") if each.strip())


def http_app(visits: Visits, leads: asyncio.Event, stuck_s: float) -> web.Application:
    """/healthz: the age of the last visit, not that this process answers. /metrics."""

    async def healthz(_: web.Request) -> web.Response:
        if not leads.is_set():
            return web.Response(text="standing by\n")
        age_s = time.monotonic() - visits.settled_at
        text = f"last visit ended {age_s:.0f} s ago\n"
        return web.Response(status=200 if age_s < stuck_s else 503, text=text)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), content_type="text/plain")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", metrics)])
    return app


def name_ourselves() -> None:
    """kopf names an operator after its pod, or else after its user, who has no name in a container of any user id."""
    os.environ.setdefault("POD_ID", socket.gethostname())


class Wiring:
    """One operator's parts, made and not yet at work."""

    def __init__(self, settings: argparse.Namespace, api: Cluster, stop: asyncio.Event) -> None:
        images = Images(
            agentserving=settings.image, vllm=settings.vllm_image, etcd=settings.etcd_image,
            pull_secrets=names(settings.image_pull_secrets),
        )  # fmt: skip
        planes = control_plane.ControlPlanes()
        world = World(
            api=api, settle=planes.settle, images=images, now=now, random_bytes=secrets.token_bytes
        )  # fmt: skip
        self._watched, self._round_s, self._stop = names(settings.namespaces), settings.round_s, stop
        self.visits = Visits(functools.partial(reconcile, world))
        self._rounds = Rounds(api, self.visits, planes, self._watched)

    async def work(self) -> None:
        """Until it is told to stop."""
        self.visits.heard()
        round_task = asyncio.create_task(self._rounds.keep(self._round_s))
        try:
            await kopf.operator(
                registry=handlers.register(self.visits), settings=handlers.settings(), standalone=True,
                clusterwide=not self._watched, namespaces=self._watched, stop_flag=self._stop,
            )  # fmt: skip
        finally:
            round_task.cancel()
            await asyncio.gather(round_task, return_exceptions=True)
            await self.visits.close()


async def serve(settings: argparse.Namespace) -> int:
    """Runs until SIGTERM or SIGINT. Gives the exit code: 1 when it has lost its Lease, and is to begin anew."""
    name_ourselves()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with await Cluster.connect(settings.kubeconfig) as api:
        wiring = Wiring(settings, api, stop)
        # Who stands by has nothing to visit, and is well.
        leads = asyncio.Event()
        runner = web.AppRunner(http_app(wiring.visits, leads, settings.stuck_s), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, settings.http_host, settings.http_port).start()
        log.info("operating", namespaces=settings.namespaces or "all", image=settings.image)

        async def work() -> None:
            leads.set()
            await wiring.work()

        try:
            if settings.lease:
                await until_stopped(lead(api.api_client, settings.lease, os.environ["POD_ID"], work), stop, leads)
            else:
                await work()
        except LostLeaseError as error:
            log.error("ending, to begin anew", error=str(error))
            return 1
        finally:
            await runner.cleanup()
    return 0


async def until_stopped(leading: Coroutine[Any, Any, None], stop: asyncio.Event, leads: asyncio.Event) -> None:
    """Who stands by ends when told; who leads ends its work first."""
    task, told = asyncio.create_task(leading), asyncio.create_task(stop.wait())
    await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not leads.is_set():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return
    await task


def main() -> None:
    """Entry point."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    # kopf's own log: what it watches and what went wrong there.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    settings = parse(sys.argv[1:])
    if settings.kubeconfig:
        # kopf logs in by itself, and looks there.
        os.environ["KUBECONFIG"] = settings.kubeconfig
    sys.exit(asyncio.run(serve(settings)))


if __name__ == "__main__":
    main()
