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

import kopf
import structlog
from aiohttp import web
from prometheus_client import generate_latest

from agentserving_operator import control_plane, handlers
from agentserving_operator.cluster import Cluster
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


def http_app(visits: Visits, stuck_s: float) -> web.Application:
    """/healthz: the age of the last visit, not that this process answers. /metrics."""

    async def healthz(_: web.Request) -> web.Response:
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


async def serve(settings: argparse.Namespace) -> None:
    """Runs until SIGTERM or SIGINT."""
    name_ourselves()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    images = Images(
        agentserving=settings.image, vllm=settings.vllm_image, etcd=settings.etcd_image,
        pull_secrets=names(settings.image_pull_secrets),
    )  # fmt: skip
    watched = names(settings.namespaces)
    async with await Cluster.connect(settings.kubeconfig) as api:
        planes = control_plane.ControlPlanes()
        world = World(
            api=api, settle=planes.settle, images=images, now=now, random_bytes=secrets.token_bytes
        )  # fmt: skip
        visits = Visits(functools.partial(reconcile, world))
        runner = web.AppRunner(http_app(visits, settings.stuck_s), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, settings.http_host, settings.http_port).start()
        watching = asyncio.create_task(
            kopf.operator(
                registry=handlers.register(visits), settings=handlers.settings(), standalone=True,
                clusterwide=not watched, namespaces=watched, stop_flag=stop,
            )
        )  # fmt: skip
        round_task = asyncio.create_task(Rounds(api, visits, planes, watched).keep(settings.round_s))
        log.info("operating", namespaces=watched or "all", image=settings.image)
        await watching
        round_task.cancel()
        await asyncio.gather(round_task, return_exceptions=True)
        await visits.close()
        await runner.cleanup()


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
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
