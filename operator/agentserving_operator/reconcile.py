"""One visit of one cluster: the whole object, whatever the occasion. Visiting twice changes nothing the second time.

read the spec -> see to certificates -> compare each desired object with the live one, apply those that differ ->
delete ours that are no longer desired -> have the policy put in force -> write the status, if it is another one.
"""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol

import structlog
from agentserving.transport.connection import Pem

from agentserving_operator.api_server import RefusedError
from agentserving_operator.certificates.issuing import Issued, issue
from agentserving_operator.control_planes import PolicyRefusedError
from agentserving_operator.manifests import Cluster, Component, Images, Manifest, desired
from agentserving_operator.manifests.common import Port
from agentserving_operator.manifests.ticket_key_secret import (
    KEY_BYTES,
    ROTATE,
    TicketKeys,
    rotated,
    ticket_key_secret,
    ticket_keys_of,
)
from agentserving_operator.observe.drift import matches
from agentserving_operator.observe.events import events_of
from agentserving_operator.observe.owned import is_owned, labels_of, may_take, name_taken, refused
from agentserving_operator.observe.reasons import Reason, Trouble
from agentserving_operator.observe.status import Observed, Overview, invalid_status, status_of
from agentserving_operator.spec.cluster import ClusterSpec
from agentserving_operator.spec.crd import API_VERSION, KIND
from agentserving_operator.spec.parsing import SpecError, parse
from agentserving_operator.spec.scheduling import Scheduling

log = structlog.get_logger()


class Api(Protocol):
    """What a visit asks of the API server; `cluster.Cluster` is one.

    Every method raises ApiError: RefusedError when the answer is no, UnavailableError when there is none.
    """

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """None when there is none."""

    async def find(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Manifest]:
        """By labels."""

    async def children(self, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Of all kinds that a cluster is made of."""

    async def apply(self, manifest: Manifest) -> Manifest:
        """Gives the object as it is now."""

    async def create(self, manifest: Manifest) -> Manifest | None:
        """None when it is there already; MUST NOT change that one."""

    async def delete(self, live: Manifest) -> None:
        """Only that very object; one that is gone is no error."""

    async def apply_status(self, manifest: Manifest) -> None:
        """The whole status."""


Settle = Callable[[str, Scheduling, int, Pem | None], Awaitable[Overview | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a visit needs from outside: ports, the clock, randomness."""

    api: Api
    settle: Settle
    images: Images
    now: Callable[[], str]
    random_bytes: Callable[[int], bytes]


class Outcome(StrEnum):
    """How a visit ended; a metric's label."""

    GONE = "gone"
    INVALID = "invalid"
    # Nothing more to do until something happens.
    SETTLED = "settled"
    # Something that no event will tell is under way: come again soon.
    PENDING = "pending"
    # The API server refused something: come again later.
    REFUSED = "refused"


async def reconcile(world: World, namespace: str, name: str) -> Outcome:
    """Visits one cluster. UnavailableError when the API server does not answer."""
    live = await world.api.get(KIND, namespace, name)
    if live is None or "deletionTimestamp" in live["metadata"]:
        # Its children are collected by their owner references.
        return Outcome.GONE
    generation, previous = int(live["metadata"]["generation"]), live.get("status", {})
    try:
        spec = parse(ClusterSpec, live["spec"])
    except SpecError as error:
        trouble = Trouble(Reason.INVALID_SPEC, str(error))
        await _tell(world, live, invalid_status(trouble, generation, previous, world.now()))
        return Outcome.INVALID
    cluster = Cluster(
        name=name, namespace=namespace, uid=live["metadata"]["uid"], spec=spec, images=world.images,
        generation=generation, key_request=str((live["metadata"].get("annotations") or {}).get(ROTATE, "")),
    )  # fmt: skip
    troubles: list[Trouble] = []
    issued = await issue(world.api, cluster, _now(world), troubles)
    cluster = replace(cluster, trust=issued.trust)
    observed = await _converge(world, cluster, troubles)
    observed = await _ask_control_plane(world, cluster, observed, issued)
    await _tell(world, live, status_of(cluster, observed, previous, world.now()))
    return _outcome(cluster, observed)


async def _converge(world: World, cluster: Cluster, troubles: list[Trouble]) -> Observed:
    """Objects as they should be."""
    found = await world.api.children(cluster.namespace, labels_of(cluster.name))
    live = {(each["kind"], each["metadata"]["name"]): each for each in found}
    await _ensure_ticket_key(world, cluster, troubles)
    wanted = {(each["kind"], each["metadata"]["name"]): each for each in desired(cluster)}
    for key, manifest in wanted.items():
        try:
            applied = await _ensure(world, cluster, manifest, live.get(key))
        except RefusedError as error:
            troubles.append(refused(*key, error))
        else:
            if isinstance(applied, Trouble):
                troubles.append(applied)
            else:
                live[key] = applied
    for key, each in list(live.items()):
        if key not in wanted and is_owned(each, cluster):
            log.info("no longer wanted", kind=key[0], name=key[1], namespace=cluster.namespace)
            await world.api.delete(each)
            del live[key]
    pods = await world.api.find("Pod", cluster.namespace, labels_of(cluster.name))
    return Observed(objects=live, pods=pods, troubles=troubles)


async def _ensure(world: World, cluster: Cluster, manifest: Manifest, live: Manifest | None) -> Manifest | Trouble:
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    if live is None:
        # Not there, or without the labels by which we look.
        live = await world.api.get(kind, cluster.namespace, name)
    if live is not None and not may_take(live, cluster):
        return name_taken(kind, name)
    if live is not None and matches(manifest, {**live, "apiVersion": manifest["apiVersion"]}):
        return live
    log.info("applying", kind=kind, name=name, namespace=cluster.namespace, new=live is None)
    return await world.api.apply(manifest)


async def _ensure_ticket_key(world: World, cluster: Cluster, troubles: list[Trouble]) -> None:
    try:
        there = await world.api.get("Secret", cluster.namespace, cluster.ticket_key_name)
        if there is None:
            # Whoever asked before there was a key has a new one.
            since = _now(world) if cluster.key_request else None
            new = TicketKeys(world.random_bytes(KEY_BYTES), request=cluster.key_request, since=since)
            await world.api.create(ticket_key_secret(cluster, new))
        elif not may_take(there, cluster):
            troubles.append(name_taken("Secret", cluster.ticket_key_name))
        elif (keys := ticket_keys_of(there)) is not None:
            wanted = rotated(keys, cluster.key_request, _now(world), world.random_bytes)
            if wanted != keys:
                log.info("ticket key", name=cluster.ticket_key_name, namespace=cluster.namespace, step=_step(wanted))
                await world.api.apply(ticket_key_secret(cluster, wanted))
    except RefusedError as error:
        troubles.append(refused("Secret", cluster.ticket_key_name, error))


def _step(keys: TicketKeys) -> str:
    return "announced" if keys.next is not None else "signs" if keys.previous is not None else "done"


def _now(world: World) -> datetime.datetime:
    return datetime.datetime.fromisoformat(world.now())


async def _ask_control_plane(world: World, cluster: Cluster, observed: Observed, issued: Issued) -> Observed:
    if not _serves(cluster, observed) or (cluster.spec.tls.on and issued.client is None):
        return observed
    address = cluster.address(Component.CONTROL_PLANE, Port.CONTROL_PLANE)
    try:
        overview = await world.settle(address, cluster.spec.scheduling, cluster.generation, issued.client)
    except PolicyRefusedError as error:
        trouble = Trouble(Reason.POLICY_REFUSED, f"spec.scheduling: the control plane says: {error}")
        return replace(observed, troubles=[*observed.troubles, trouble])
    return replace(observed, overview=overview)


def _serves(cluster: Cluster, observed: Observed) -> bool:
    deployment = observed.objects.get(("Deployment", cluster.child(Component.CONTROL_PLANE)), {})
    return int(deployment.get("status", {}).get("readyReplicas", 0)) > 0


def _outcome(cluster: Cluster, observed: Observed) -> Outcome:
    if observed.troubles:
        return Outcome.REFUSED
    if _serves(cluster, observed) and (observed.overview is None or observed.overview.pending_engines):
        return Outcome.PENDING
    return Outcome.SETTLED


async def _tell(world: World, live: Manifest, status: dict[str, Any]) -> None:
    """Writes the status when it is another one, and an Event for each condition that turned."""
    previous, where = live.get("status", {}), live["metadata"]
    if status == previous:
        return
    named = {"name": where["name"], "namespace": where["namespace"]}
    await world.api.apply_status({"apiVersion": API_VERSION, "kind": KIND, "metadata": named, "status": status})
    for event in events_of(live, previous, status, world.now(), world.random_bytes(4).hex()):
        try:
            await world.api.create(event)
        except RefusedError as error:
            # Nothing depends on it; a namespace that is going takes none.
            log.warning("event refused", namespace=where["namespace"], name=where["name"], error=str(error))
