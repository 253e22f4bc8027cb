"""The operator of AgentServingClusters: `python -m agentserving_operator`. This module only wires its parts together.

Tasks of a working operator: `ClusterEvents.run` (kopf), one `watches.Watch` for each kind of object in a cluster,
`Rounds.run`, and `Visits.run` with a task per cluster. They start together, with the Lease where there are several
operators. kopf is started again when it fails; if another task fails, the process ends with a logged reason.
"""

from __future__ import annotations

import asyncio
import datetime
import secrets
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import agentserving
import structlog
from agentserving_process import logs, options, probes, supervision
from agentserving_process.backoff import Backoff
from agentserving_process.options import REQUIRED, option
from agentserving_process.probes import Answer, ProbeOptions
from agentserving_process.supervision import CannotStartError, Supervisor

from agentserving_operator.api_server import ApiServer
from agentserving_operator.control_planes import ControlPlanes
from agentserving_operator.credentials import NoCredentialsError
from agentserving_operator.handlers import ClusterEvents
from agentserving_operator.lease import LostLeaseError, lead
from agentserving_operator.manifests import Images
from agentserving_operator.reconcile import Reconciler
from agentserving_operator.rounds import Rounds
from agentserving_operator.scaler import Scaler
from agentserving_operator.visits import Visits
from agentserving_operator.watches import watches

log = structlog.get_logger()

PREFIX = "AGENTSERVING_OPERATOR"
# The process ends itself after losing its Lease; the kubelet starts it again.
LOST_LEASE = 1
# kopf fails when the API server is away for some seconds; until it runs again, rounds find what changed.
KOPF_RESTART = Backoff(first_s=1.0, max_s=30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """Images of clusters"""

    image: str = option(REQUIRED, "image of control plane, gateway, sidecar and simulator")
    vllm_image: str = option(REQUIRED, "image of vLLM with the scheduler plugin")
    etcd_image: str = option(REQUIRED, "image of etcd")
    image_pull_secrets: tuple[str, ...] = option((), "names of Secrets, separated by commas")

    def images(self) -> Images:
        """As manifests take them."""
        return Images(
            agentserving=self.image, vllm=self.vllm_image, etcd=self.etcd_image, pull_secrets=self.image_pull_secrets
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Operation"""

    images: ImageOptions
    probes: ProbeOptions
    namespaces: tuple[str, ...] = option((), "namespaces to look after, separated by commas; none: all")
    own_namespace: str = option(
        "", "namespace of the operator's pods, which clusters let in; none: the operator runs outside Kubernetes"
    )
    kubeconfig: str = option("", "path of a kubeconfig; none: the pod's service account, else the user's kubeconfig")
    round_s: float = option(
        30.0, "seconds between rounds: each asks all control planes, and visits a twentieth of the clusters", above=0
    )
    stuck_s: float = option(180.0, "seconds without a visit or a round after which /healthz fails", above=0)
    lease: str = option(
        "", "namespace/name of the Lease by which one of several operators works, and releases leave each other's "
        "clusters alone; none: this one is alone",
    )  # fmt: skip
    identity: str = option("", "name of this operator in the Lease; none: the host's name")

    def __post_init__(self) -> None:
        if self.lease and not all(part for part in self.lease.partition("/")):
            raise ValueError(f"--lease: must be namespace/name, not {self.lease!r}")

    @property
    def name(self) -> str:
        """This operator's name among others."""
        return self.identity or socket.gethostname()


def now() -> str:
    """RFC 3339, in seconds: what Kubernetes stores."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True, kw_only=True)
class Operator:
    """One operator. `work` runs it until `stop` returns; until then it stands by."""

    settings: Settings
    api: ApiServer
    stop: Callable[[], Awaitable[None]]
    planes: ControlPlanes = field(default_factory=ControlPlanes)
    visits: Visits = field(init=False)
    scaler: Scaler = field(init=False)
    works: bool = False

    def __post_init__(self) -> None:
        self.scaler = Scaler(self.planes, lambda namespace, name: self.visits.touch(namespace, name))
        reconciler = Reconciler(
            api=self.api,
            apply_policy=self.planes.apply_policy,
            apply_tenants=self.planes.apply_tenants,
            images=self.settings.images.images(),
            now=now,
            random_bytes=secrets.token_bytes,
            scaling=self.scaler,
            operator_namespace=self.settings.own_namespace,
            lease=self.settings.lease,
        )
        self.visits = Visits(reconciler.visit)

    async def work(self) -> None:
        """Watches, visits and makes rounds until `stop` returns. Raises TaskFailedError when one of these fails."""
        self.visits.round_ended()
        self.works = True
        rounds = Rounds(self.api, self.visits, self.planes, self.settings.namespaces)
        events = ClusterEvents(
            self.api, self.visits.touch, namespaces=self.settings.namespaces, kubeconfig=self.settings.kubeconfig,
            identity=self.settings.name,
        )  # fmt: skip
        async with Supervisor() as tasks:
            tasks.start("visits", self.visits.run)
            tasks.start("scaler", self.scaler.run)
            tasks.start("rounds", lambda: rounds.run(self.settings.round_s))
            tasks.start("kopf", events.run, restart=KOPF_RESTART)
            for watch in watches(self.api, self.visits.touch, self.settings.namespaces):
                tasks.start(watch.name, watch.run)
            await self.stop()

    def health(self) -> Answer:
        """Alive means that visits or rounds succeed, not that this process answers."""
        if not self.works:
            return Answer(True, "standing by")
        age_s = time.monotonic() - self.visits.progress_at
        return Answer(age_s < self.settings.stuck_s, f"last visit ended {age_s:.0f} s ago")


async def serve(settings: Settings, supervisor: Supervisor) -> int:
    """Runs until SIGTERM or SIGINT, or until the Lease is lost; returns the exit code."""
    try:
        api = await ApiServer.connect(settings.kubeconfig)
    except (NoCredentialsError, OSError, ValueError) as error:
        raise CannotStartError(f"no access to a Kubernetes API server: {error}") from error
    async with api:
        operator = Operator(settings=settings, api=api, stop=supervisor.stop_requested)
        async with probes.served(probes.application(healthy=operator.health), settings.probes):
            log.info("operating", namespaces=settings.namespaces or "all", image=settings.images.image)
            if not settings.lease:
                await operator.work()
                return supervision.OK
            try:
                await work_with_lease(operator, settings.name)
            except LostLeaseError as error:
                log.error("lost the Lease, ending so that another operator works alone", error=str(error))
                return LOST_LEASE
    return supervision.OK


async def work_with_lease(operator: Operator, identity: str) -> None:
    """Works while it has the Lease. A stop ends standing by immediately, and work in an orderly way."""
    leading = asyncio.create_task(lead(operator.api, operator.settings.lease, identity, operator.work))
    stopped = asyncio.ensure_future(operator.stop())
    try:
        await asyncio.wait({leading, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if leading.done() or operator.works:
            await leading
    finally:
        leading.cancel()
        stopped.cancel()
        await asyncio.wait({leading, stopped})


def main() -> None:
    """Entry point."""
    settings = options.parse(
        Settings, prog="agentserving-operator", description=__doc__, prefix=PREFIX, version=agentserving.__version__
    )
    logs.configure()
    sys.exit(supervision.run(lambda supervisor: serve(settings, supervisor)))


if __name__ == "__main__":
    main()
