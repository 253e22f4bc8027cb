"""A cluster's certificates in the API server: checked on each visit, and renewed when they are due.

With issuer Operator the Secrets are ours, and the CA's is written first. With CertManager they belong to cert-manager
and are only read, except the one that engine pods mount: it is collected from those of the engines. They are read one
by one, so that the operator needs no right to list Secrets. `renewal` decides which are due.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import structlog
from agentserving.transport.connection import Pem

from agentserving_operator.errors import RefusedError
from agentserving_operator.manifests import AgentServingCluster, Manifest
from agentserving_operator.manifests.certificate_objects import (
    all_leaves,
    authority_of,
    ca_secret_name,
    content,
    engine_leaves,
    engine_secret_name,
    engines_secret,
    leaf_of_engine,
    leaves,
    pair_of,
    secrets,
)
from agentserving_operator.manifests.tls import Leaf, engines_secret_name, secret_name, server_name
from agentserving_operator.observe.drift import matches
from agentserving_operator.observe.owned import may_take, name_taken, refused
from agentserving_operator.observe.reasons import Reason, Trouble
from agentserving_operator.spec.tls import Issuer

log = structlog.get_logger()

# In a condition; all of them expire for one reason.
MAX_LISTED = 3


class Secrets(Protocol):
    """What issuing asks of the API server; raises as `reconcile.Api` does."""

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """None when it does not exist."""

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply; returns the object as stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """What the operator itself needs: its client certificate, and an id of the trusted CAs ("" = not known).

    `pending`: certificates are missing that cert-manager will write, which no watch of ours reports. `expiring`: about
    certificates near their end, whoever should have renewed them.
    """

    client: Pem | None = None
    trust: str = ""
    pending: bool = False
    expiring: Trouble | None = None


async def issue(api: Secrets, cluster: AgentServingCluster, now: datetime.datetime, troubles: list[Trouble]) -> Issued:
    """Issues and renews certificates. Problems are added to `troubles`."""
    live: dict[str, Manifest | None] = {}
    issued = Issued()
    if cluster.spec.tls.on:
        issued = await _issue(api, cluster, now, live, troubles)
    return replace(issued, expiring=await _expiring(api, cluster, now, live))


async def _expiring(
    api: Secrets, cluster: AgentServingCluster, now: datetime.datetime, live: Mapping[str, Manifest | None]
) -> Trouble | None:
    """About certificates near their end: the cluster's, and the one that its clients see."""
    chains = {name: pair_of(each) for name, each in live.items()}
    chains |= {each: pair_of(live.get(engines_secret_name(cluster.name)), each) for each in engine_leaves(cluster)}
    if cluster.spec.gateway.tls is not None:
        name = cluster.spec.gateway.tls.secret_name
        with contextlib.suppress(RefusedError):
            chains[name] = pair_of(await api.get("Secret", cluster.namespace, name))
    found = {name: pair.cert for name, pair in chains.items() if pair is not None}
    if not found:
        return None
    # Imported only when there are certificates, because `cryptography` takes 10 MB.
    from agentserving_operator.certificates.expiry import overdue

    late = sorted((ends, name) for name, ends in overdue(found, now).items())
    if not late:
        return None
    listed = ", ".join(f"{name} on {ends:%Y-%m-%d %H:%M} UTC" for ends, name in late[:MAX_LISTED])
    more = f" and {len(late) - MAX_LISTED} more" if len(late) > MAX_LISTED else ""
    message = (
        f"certificates that were not renewed expire: {listed}{more}; ask who renews them: cert-manager "
        "(`kubectl describe certificate`), the owner of spec.gateway.tls, or the operator's log"
    )
    return Trouble(Reason.CERTIFICATE_EXPIRES, message)


async def _issue(
    api: Secrets,
    cluster: AgentServingCluster,
    now: datetime.datetime,
    live: dict[str, Manifest | None],
    troubles: list[Trouble],
) -> Issued:
    """Fills `live` with the Secrets of certificates by name."""
    issuer = cluster.spec.tls.issuer
    names = [*(secret_name(cluster.name, leaf) for leaf in leaves(cluster)), engines_secret_name(cluster.name)]
    if issuer is Issuer.OPERATOR:
        names.insert(0, ca_secret_name(cluster))
    else:
        names += [engine_secret_name(engine_id) for engine_id in engine_leaves(cluster)]
    for name in names:
        try:
            live[name] = await api.get("Secret", cluster.namespace, name)
        except RefusedError as error:
            troubles.append(refused("Secret", name, error))
            return Issued()
    if issuer is Issuer.OPERATOR:
        await _renew(api, cluster, now, live, troubles)
    else:
        await _collect(api, cluster, live, troubles)
    return _issued(cluster, live)


async def _renew(
    api: Secrets,
    cluster: AgentServingCluster,
    now: datetime.datetime,
    live: dict[str, Manifest | None],
    troubles: list[Trouble],
) -> None:
    taken = [name for name, each in live.items() if each is not None and not may_take(each, cluster)]
    if taken:
        troubles.extend(name_taken("Secret", name) for name in taken)
        return
    # Imported only when a cluster has certificates of ours, because `cryptography` takes 10 MB.
    from agentserving_operator.certificates.renewal import renewed

    old = {leaf.value: pair_of(live[secret_name(cluster.name, leaf)]) for leaf in leaves(cluster)}
    engines = live[engines_secret_name(cluster.name)]
    old |= {leaf_of_engine(engine_id): pair_of(engines, engine_id) for engine_id in engine_leaves(cluster)}
    found = renewed(cluster.name, authority_of(live[ca_secret_name(cluster)]), old, all_leaves(cluster), now)
    for manifest in secrets(cluster, found):
        if not await _write(api, cluster, manifest, live, troubles):
            # Certificates that follow would be signed by a CA that is not stored.
            return


async def _collect(
    api: Secrets, cluster: AgentServingCluster, live: dict[str, Manifest | None], troubles: list[Trouble]
) -> None:
    """Puts what cert-manager has issued for the engines into the one Secret that their pods mount."""
    name = engines_secret_name(cluster.name)
    there = live[name]
    if there is not None and not may_take(there, cluster):
        troubles.append(name_taken("Secret", name))
        return
    by_id = {engine_id: live[engine_secret_name(engine_id)] for engine_id in engine_leaves(cluster)}
    pairs = {engine_id: pair for engine_id, each in by_id.items() if (pair := pair_of(each)) is not None}
    trusted = next((ca for each in by_id.values() if (ca := content(each, "ca.crt")) is not None), None)
    if pairs and trusted is not None:
        await _write(api, cluster, engines_secret(cluster, trusted, pairs), live, troubles)


async def _write(
    api: Secrets,
    cluster: AgentServingCluster,
    manifest: Manifest,
    live: dict[str, Manifest | None],
    troubles: list[Trouble],
) -> bool:
    """Writes a Secret that differs from the live one. False when the API server refuses it."""
    name = manifest["metadata"]["name"]
    there = live[name]
    if there is not None and matches(manifest, {**there, **_kind_of(manifest)}):
        return True
    log.info("writing certificates", name=name, namespace=cluster.namespace, new=there is None)
    try:
        live[name] = await api.apply(manifest)
    except RefusedError as error:
        troubles.append(refused("Secret", name, error))
        return False
    return True


def _kind_of(manifest: Manifest) -> Manifest:
    return {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"]}


def _issued(cluster: AgentServingCluster, live: dict[str, Manifest | None]) -> Issued:
    client, engines = live[secret_name(cluster.name, Leaf.OPERATOR)], live[engines_secret_name(cluster.name)]
    pair, ca = pair_of(client), content(client, "ca.crt")
    trust = "" if ca is None else hashlib.sha256(ca).hexdigest()[:16]
    complete = all(pair_of(engines, engine_id) is not None for engine_id in engine_leaves(cluster))
    pem = None if pair is None else Pem(ca, pair.cert, pair.key, server_name(cluster))
    return Issued(client=pem, trust=trust, pending=pem is None or not complete)
