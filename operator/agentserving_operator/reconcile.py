"""One visit of one cluster: always the whole object, whatever caused the visit. A second visit changes nothing.

Read the spec -> renew certificates that are due -> compare each desired object with the live one and apply those that
differ -> delete our objects that are no longer desired -> apply the policy -> settle the cluster's tenants -> write the
status if it changed.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

import structlog
from agentserving.client.values import TenantSettings

from agentserving_operator.control_planes import PolicyRefusedError, Target
from agentserving_operator.errors import ConflictError, RefusedError
from agentserving_operator.field_owners import in_stored_version
from agentserving_operator.issuing import Issued, issue
from agentserving_operator.manifests import AgentServingCluster, Component, Images, Manifest, desired
from agentserving_operator.manifests.common import Port
from agentserving_operator.manifests.engine_group import KIND as GROUP
from agentserving_operator.manifests.inference_pool import goes_with
from agentserving_operator.manifests.ticket_key_secret import (
    KEY_BYTES,
    ROTATE,
    TicketKeys,
    has_all_files,
    rotated,
    ticket_key_secret,
    ticket_keys_of,
)
from agentserving_operator.manifests.ways_in import unlisted
from agentserving_operator.observe.address_families import family_trouble
from agentserving_operator.observe.claims import is_held, recorded
from agentserving_operator.observe.entrances import entrances_of
from agentserving_operator.observe.events import events_of, left_alone
from agentserving_operator.observe.overview import Overview
from agentserving_operator.observe.owned import is_owned, labels_of, may_take, name_taken, refused
from agentserving_operator.observe.reasons import Reason, Trouble
from agentserving_operator.observe.settled import Settled
from agentserving_operator.observe.status import (
    Observed,
    are_pods_waiting,
    invalid_status,
    is_group_settling,
    status_of,
)
from agentserving_operator.observe.tenants import Outcome
from agentserving_operator.scaled_clusters import Scaling, scaled
from agentserving_operator.spec.auth import in_force
from agentserving_operator.spec.cluster import ClusterSpec
from agentserving_operator.spec.crd import API_VERSION, KIND
from agentserving_operator.spec.parsing import SpecError, parse
from agentserving_operator.tenants import Settled as SettledTenants
from agentserving_operator.tenants import report_missing, settle

log = structlog.get_logger()


class Api(Protocol):
    """What a visit asks of the API server; `api_server.ApiServer` implements it.

    Every method raises ApiError: RefusedError when the API server refuses, UnavailableError when it does not respond.
    """

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """None when it does not exist."""

    async def find(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Manifest]:
        """Objects with these labels."""

    async def warnings(self, namespace: str) -> list[Manifest]:
        """Events of type Warning."""

    async def children(self, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Objects with these labels, of all kinds that a cluster consists of."""

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply; returns the object as stored."""

    async def create(self, manifest: Manifest) -> Manifest | None:
        """None when an object of that name exists."""

    async def delete(self, live: Manifest) -> None:
        """Deletes this very object; no error when it is gone."""

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Replaces the whole status. ConflictError when metadata names a resourceVersion that is not the newest."""

    async def set_field_owners(self, live: Manifest, entries: Sequence[Manifest]) -> Manifest:
        """Replaces managedFields. ConflictError when the object is not the newest."""


class VisitResult(StrEnum):
    """How a visit ended; the label of a metric."""

    # The cluster does not exist any more.
    GONE = "gone"
    # Another operator looks after the cluster: visit again, for it may end.
    FOREIGN = "foreign"
    # The spec cannot be used.
    INVALID = "invalid"
    # Nothing more to do until something changes.
    SETTLED = "settled"
    # Something is in progress that no watch reports: visit again soon.
    PENDING = "pending"
    # Pods are missing or do not start; what keeps them is in Events, which nothing watches: visit again.
    WAITING = "waiting"
    # The API server or the control plane refused something: visit again later.
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciler:
    """Visits clusters. Everything outside is a field: ports, the clock (RFC 3339, seconds), randomness."""

    api: Api
    apply_policy: Callable[[Target], Awaitable[Overview | None]]
    apply_tenants: Callable[[Target, Mapping[str, TenantSettings], Collection[str]], Awaitable[Outcome]]
    images: Images
    now: Callable[[], str]
    random_bytes: Callable[[int], bytes]
    scaling: Scaling
    settled: Settled = field(default_factory=Settled)
    # Whose pods may connect to control planes; "" = the operator runs outside Kubernetes.
    operator_namespace: str = ""
    # This operator's Lease, namespace/name; "" = it has none, and its clusters may be taken over.
    lease: str = ""
    # Of clusters by uid: the operator for which they were left alone.
    left_alone: dict[str, str] = field(default_factory=dict)

    async def visit(self, namespace: str, name: str) -> VisitResult:
        """Visits one cluster. UnavailableError when the API server does not respond."""
        try:
            return await self._visit(namespace, name)
        except ConflictError:
            # A user, an autoscaler or another operator was faster: what we decided is about an object of the past.
            log.info("changed during the visit, will visit again", namespace=namespace, name=name)
            return VisitResult.PENDING

    async def _visit(self, namespace: str, name: str) -> VisitResult:
        live = await self.api.get(KIND, namespace, name)
        if live is None or "deletionTimestamp" in live["metadata"]:
            self.scaling.forget((namespace, name))
            # Its children are garbage-collected through their owner references.
            await report_missing(self.api, namespace, name, self.now())
            return VisitResult.GONE
        if await self._is_foreign(live):
            return VisitResult.FOREIGN
        live = await in_stored_version(self.api, await self._claimed(live))
        generation, previous = int(live["metadata"]["generation"]), live.get("status", {})
        try:
            cluster = self._cluster(live)
            # A pod template may contradict what the parts need: seen before anything is written.
            desired(cluster)
        except SpecError as error:
            trouble = Trouble(Reason.INVALID_SPEC, str(error))
            await self._write_status(live, invalid_status(trouble, generation, previous, self.now()))
            return VisitResult.INVALID
        troubles: list[Trouble] = []
        issued = await issue(self.api, cluster, self._now(), troubles)
        cluster = replace(cluster, trust=issued.trust)
        observed = await self._converge(cluster, troubles, previous)
        target = _target(cluster, observed, issued)
        self.scaling.aim((namespace, name), target, [each["metadata"]["name"] for each in observed.pods])
        observed = await self._ask_control_plane(target, observed)
        tenants = await self._settle_tenants(cluster, target, previous.get("tenants", []))
        observed = replace(observed, tenants=tenants.recorded, expiring=issued.expiring, operator=self.lease)
        await self._write_status(live, status_of(cluster, observed, previous, self.now()))
        if observed.autoscaling is not None:
            self.scaling.recorded((namespace, name), observed.autoscaling.draining)
        result = _result(cluster, observed, issued)
        return VisitResult.PENDING if result is VisitResult.SETTLED and tenants.pending else result

    async def _is_foreign(self, live: Manifest) -> bool:
        """Whether another operator looks after the cluster. Says so in an Event, once for each holder."""
        holder = recorded(live.get("status", {}))
        if holder in ("", self.lease):
            return False
        lease_namespace, _, lease_name = holder.partition("/")
        try:
            held = is_held(await self.api.get("Lease", lease_namespace, lease_name), self._now())
        except RefusedError:
            # Without the right to look into its namespace: better two that wait than two that fight.
            held = True
        metadata = live["metadata"]
        about = {"namespace": metadata["namespace"], "name": metadata["name"], "lease": holder}
        if not held:
            log.info("taking over from an operator that is gone", **about)
        elif self.left_alone.get(metadata["uid"]) != holder:
            self.left_alone[metadata["uid"]] = holder
            log.warning("left alone, another operator looks after it", **about)
            await self._say(left_alone(live, holder, self.now(), self.random_bytes(4).hex()))
        return held

    async def _claimed(self, live: Manifest) -> Manifest:
        """The cluster with this operator's Lease recorded. ConflictError when another operator may have been faster.

        Before anything else is written: of two operators that find a new cluster in one moment, only one makes it.
        """
        previous = live.get("status", {})
        if recorded(previous) == self.lease:
            return live
        return await self.api.apply_status(_with_status(live, {**previous, "operator": self.lease}))

    def _cluster(self, live: Manifest) -> AgentServingCluster:
        metadata, previous = live["metadata"], live.get("status", {})
        spec = parse(ClusterSpec, live["spec"])
        return AgentServingCluster(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            spec=spec,
            images=self.images,
            generation=int(metadata["generation"]),
            operator_namespace=self.operator_namespace,
            client_auth=in_force(spec.auth.clients, spec.tls.on, previous),
            key_request=str((metadata.get("annotations") or {}).get(ROTATE, "")),
        )

    def _now(self) -> datetime.datetime:
        return datetime.datetime.fromisoformat(self.now())

    async def _converge(
        self, cluster: AgentServingCluster, troubles: list[Trouble], previous: Mapping[str, Any]
    ) -> Observed:
        """Makes the objects as they should be, and returns what is there after that."""
        found = await self.api.children(cluster.namespace, labels_of(cluster.name))
        live = {(each["kind"], each["metadata"]["name"]): each for each in found}
        engines = await self._engines(cluster, live)
        cluster, autoscaling = scaled(self.scaling, cluster, engines, previous)
        await self._ensure_ticket_key(cluster, troubles)
        wanted = {(each["kind"], each["metadata"]["name"]): each for each in desired(cluster)}
        for key, manifest in wanted.items():
            try:
                applied = await self._ensure(cluster, manifest, live.get(key))
            except RefusedError as error:
                troubles.append(refused(*key, error))
            else:
                if isinstance(applied, Trouble):
                    troubles.append(applied)
                else:
                    live[key] = applied
        for key, each in list(live.items()):
            if key not in wanted and is_owned(each, cluster):
                log.info("deleting, no longer wanted", kind=key[0], name=key[1], namespace=cluster.namespace)
                await self._delete_with(cluster, each)
                await self.api.delete(each)
                self.settled.forget(each)
                del live[key]
        for kind, name in unlisted(cluster):
            await self._delete_owned(cluster, kind, name)
        pods = await self.api.find("Pod", cluster.namespace, labels_of(cluster.name))
        if (trouble := family_trouble(cluster, pods)) is not None:
            troubles.append(trouble)
        observed = Observed(objects=live, pods=pods, troubles=troubles, autoscaling=autoscaling)
        if not are_pods_waiting(cluster, observed):
            return observed
        return replace(observed, warnings=await self.api.warnings(cluster.namespace))

    async def _engines(self, cluster: AgentServingCluster, live: dict[tuple[str, str], Manifest]) -> Manifest | None:
        """The live workload of the engines. LeaderWorkerSets are not listed, because their kind may not exist."""
        name = cluster.child(Component.ENGINE)
        if not cluster.spans_nodes:
            return live.get(("StatefulSet", name))
        found = await self.api.get(GROUP, cluster.namespace, name)
        if found is not None:
            live[GROUP, name] = {**found, "kind": GROUP}
        return found

    async def _delete_with(self, cluster: AgentServingCluster, live: Manifest) -> None:
        """Deletes what goes with an object that is about to be deleted."""
        companion = goes_with(cluster, live)
        if companion is not None:
            await self._delete_owned(cluster, *companion)

    async def _delete_owned(self, cluster: AgentServingCluster, kind: str, name: str) -> None:
        found = await self.api.get(kind, cluster.namespace, name)
        if found is not None and is_owned(found, cluster):
            log.info("deleting, no longer wanted", kind=kind, name=name, namespace=cluster.namespace)
            await self.api.delete(found)
            self.settled.forget(found)

    async def _ensure(
        self, cluster: AgentServingCluster, manifest: Manifest, live: Manifest | None
    ) -> Manifest | Trouble:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if live is None:
            # It does not exist, or it lost the labels by which we listed.
            live = await self.api.get(kind, cluster.namespace, name)
        if live is not None:
            if not may_take(live, cluster):
                return name_taken(kind, name)
            if self.settled.is_settled(manifest, {**live, "apiVersion": manifest["apiVersion"]}):
                return live
        log.info("applying", kind=kind, name=name, namespace=cluster.namespace, new=live is None)
        applied = await self.api.apply(manifest)
        self.settled.applied(manifest, applied)
        return applied

    async def _ensure_ticket_key(self, cluster: AgentServingCluster, troubles: list[Trouble]) -> None:
        try:
            live = await self.api.get("Secret", cluster.namespace, cluster.ticket_key_name)
            if live is None:
                # A request for a new key that was made before there was any is served by the first key.
                since = self._now() if cluster.key_request else None
                new = TicketKeys(self.random_bytes(KEY_BYTES), request=cluster.key_request, since=since)
                await self.api.create(ticket_key_secret(cluster, new))
            elif not may_take(live, cluster):
                troubles.append(name_taken("Secret", cluster.ticket_key_name))
            elif (keys := ticket_keys_of(live)) is not None:
                wanted = rotated(keys, cluster.key_request, self._now(), self.random_bytes)
                if wanted != keys or not has_all_files(live):
                    log.info(
                        "ticket key rotation", name=cluster.name, namespace=cluster.namespace, step=_step(wanted)
                    )  # fmt: skip
                    await self.api.apply(ticket_key_secret(cluster, wanted))
        except RefusedError as error:
            troubles.append(refused("Secret", cluster.ticket_key_name, error))

    async def _settle_tenants(
        self, cluster: AgentServingCluster, target: Target | None, recorded: Sequence[str]
    ) -> SettledTenants:
        apply = functools.partial(self.apply_tenants, target) if target is not None else None
        return await settle(self.api, cluster.namespace, cluster.name, recorded, apply, self.now())

    async def _ask_control_plane(self, target: Target | None, observed: Observed) -> Observed:
        if target is None:
            return observed
        try:
            overview = await self.apply_policy(target)
        except PolicyRefusedError as error:
            trouble = Trouble(Reason.POLICY_REFUSED, f"spec.scheduling: refused by the control plane: {error}")
            return replace(observed, troubles=[*observed.troubles, trouble])
        return replace(observed, overview=overview)

    async def _write_status(self, live: Manifest, status: dict[str, Any]) -> None:
        """Writes the status if it changed, and an Event for each condition that changed."""
        previous = live.get("status", {})
        if status == previous:
            return
        await self.api.apply_status(_with_status(live, status))
        for event in events_of(live, previous, status, self.now(), self.random_bytes(4).hex()):
            await self._say(event)

    async def _say(self, event: Manifest) -> None:
        try:
            await self.api.create(event)
        except RefusedError as error:
            # Nothing depends on Events, and a namespace that is being deleted takes none.
            about = event["regarding"]
            log.warning("event refused", namespace=about["namespace"], name=about["name"], error=str(error))


def _with_status(live: Manifest, status: dict[str, Any]) -> Manifest:
    """What to apply for a status that was decided on this version of the cluster."""
    named = {key: live["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": named, "status": status}


def _target(cluster: AgentServingCluster, observed: Observed, issued: Issued) -> Target | None:
    """None while the control plane does not serve, or cannot be spoken to."""
    if not _serves(cluster, observed) or (cluster.spec.tls.on and issued.client is None):
        return None
    return Target(
        address=cluster.address(Component.CONTROL_PLANE, Port.CONTROL_PLANE),
        scheduling=cluster.spec.scheduling,
        generation=cluster.generation,
        tls=issued.client,
    )


def _step(keys: TicketKeys) -> str:
    return "announced" if keys.next is not None else "signs" if keys.previous is not None else "done"


def _serves(cluster: AgentServingCluster, observed: Observed) -> bool:
    deployment = observed.objects.get(("Deployment", cluster.child(Component.CONTROL_PLANE)), {})
    return int(deployment.get("status", {}).get("readyReplicas", 0)) > 0


def _is_routed(cluster: AgentServingCluster, observed: Observed) -> bool:
    """HTTPRoutes are not watched, because their kind may not exist: one that is not served is looked at again."""
    return cluster.spec.gateway.http_route is None or not entrances_of(cluster, observed.objects)[1]


def _result(cluster: AgentServingCluster, observed: Observed, issued: Issued) -> VisitResult:
    if observed.troubles or not _is_routed(cluster, observed):
        return VisitResult.REFUSED
    if issued.pending or is_group_settling(cluster, observed):
        return VisitResult.PENDING
    if _serves(cluster, observed) and (observed.overview is None or observed.overview.pending_engines):
        return VisitResult.PENDING
    return VisitResult.WAITING if are_pods_waiting(cluster, observed) else VisitResult.SETTLED
