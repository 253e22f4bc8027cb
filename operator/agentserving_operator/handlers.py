"""AgentServingClusters and -Tenants, watched by kopf: every event touches the cluster. Nothing is decided here.

Only `on.event` is used. kopf's timers, daemons and state-changing handlers put a finalizer and annotations on objects:
a cluster could then not be deleted while the operator is down, and the regular round is ours anyway (`rounds.py`). The
objects of a cluster, its pods above all, are watched by `watches.py`: kopf transfers whole objects, not metadata.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import kopf

from agentserving_operator.credentials import login
from agentserving_operator.spec.crd import GROUP, KIND, PLURAL, TENANT_KIND, TENANT_PLURAL, VERSION
from agentserving_operator.visits import Touch

# A watch whose connection was lost silently is opened again. The first goes into the URL as a whole number.
SERVER_TIMEOUT_S, CLIENT_TIMEOUT_S, CONNECT_TIMEOUT_S = 300, 330.0, 10.0
# A list of all clusters. kopf's default is five minutes.
REQUEST_TIMEOUT_S = 30.0
# After these retries kopf fails, and its supervisor starts it again with longer delays.
ERROR_BACKOFFS_S = (0.5, 1.0, 2.0, 4.0)
# Between attempts to log in, as long as they fail. kopf's default is a minute.
LOGIN_BACKOFF_S = 1.0


class ClusterApi(Protocol):
    """What is asked of the API server before kopf starts. Raises ApiError."""

    async def metadata(
        self, kind: str, namespace: str, labels: Mapping[str, str] | None = None
    ) -> tuple[list[dict[str, Any]], str]:
        """Metadata of all objects with these labels ("" = in all namespaces), and their resource version."""


class ClusterEvents:
    """kopf as a task. `touch` is called on the loop of `run`, with namespace and name; no namespaces = all of them.

    kopf has a thread and a loop of its own: in ours it would take over the signals of the process, and at its end wait
    for every task that started after it and cancel it.
    """

    def __init__(
        self, api: ClusterApi, touch: Touch, *, namespaces: tuple[str, ...], kubeconfig: str, identity: str
    ) -> None:  # fmt: skip
        self._api, self._touch = api, touch
        self._namespaces, self._kubeconfig, self._identity = namespaces, kubeconfig, identity

    async def run(self) -> None:
        """Runs until it is cancelled, and then waits for kopf's end.

        Raises ApiError when clusters cannot be listed, and what kopf raises; another run lists all clusters again.
        """
        for namespace in self._namespaces or ("",):
            # kopf would ignore a kind that does not exist when it starts, for as long as it runs.
            await self._api.metadata(KIND, namespace)
            await self._api.metadata(TENANT_KIND, namespace)
        loop = asyncio.get_running_loop()

        def touch(namespace: str, name: str) -> None:
            loop.call_soon_threadsafe(self._touch, namespace, name)

        stop = threading.Event()
        thread = asyncio.ensure_future(asyncio.to_thread(asyncio.run, self._run_kopf(touch, stop)))
        try:
            await asyncio.shield(thread)
        finally:
            stop.set()
            await asyncio.gather(thread, return_exceptions=True)

    async def _run_kopf(self, touch: Touch, stop: threading.Event) -> None:
        # It warns that it leaves the signals to us.
        logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
        try:
            await kopf.operator(
                registry=registry(touch, self._kubeconfig),
                settings=settings(),
                # No peering: `lease.py` lets one operator work.
                standalone=True,
                # kopf's default is the user's name, which a container's user need not have.
                identity=self._identity,  # type: ignore[arg-type]
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                stop_flag=stop,
            )
        finally:
            # After a failure, threads of kopf's loop still wait for it, and its loop for them.
            stop.set()


def registry(touch: Touch, kubeconfig: str) -> kopf.OperatorRegistry:
    """All of kopf's handlers."""
    handlers = kopf.OperatorRegistry()

    async def cluster_event(namespace: str | None, name: str | None, **_: Any) -> None:
        touch(str(namespace), str(name))

    async def tenant_event(namespace: str | None, spec: Mapping[str, Any], **_: Any) -> None:
        # Immutable, so no other cluster is concerned.
        touch(str(namespace), str(spec.get("clusterName", "")))

    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        # Without a login of ours kopf would import the client libraries that it finds.
        return login(kubeconfig)

    kopf.on.login(registry=handlers, backoff=LOGIN_BACKOFF_S)(log_in)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)(cluster_event)
    kopf.on.event(GROUP, VERSION, TENANT_PLURAL, registry=handlers)(tenant_event)
    return handlers


def settings() -> kopf.OperatorSettings:
    """kopf's settings: watches and requests that end, no Events, no state on objects."""
    found = kopf.OperatorSettings()
    found.watching.server_timeout = SERVER_TIMEOUT_S
    found.watching.client_timeout = CLIENT_TIMEOUT_S
    found.watching.connect_timeout = CONNECT_TIMEOUT_S
    found.networking.request_timeout = REQUEST_TIMEOUT_S
    found.networking.connect_timeout = CONNECT_TIMEOUT_S
    found.networking.error_backoffs = ERROR_BACKOFFS_S
    found.posting.enabled = False
    # Looking out for new CRDs and namespaces would need rights on all of them.
    found.scanning.disabled = True
    return found
