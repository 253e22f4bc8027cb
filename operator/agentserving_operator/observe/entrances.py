"""Whether the entrances that the spec asks for are served: Ingress, HTTPRoute, load balancer. Pure.

The API server accepts an Ingress of a class without a controller, and an HTTPRoute to a Gateway that does not exist.
Whether somebody serves them shows only in their status, which their controllers write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentserving_operator.manifests import AgentServingCluster, Component, Manifest
from agentserving_operator.manifests.ways_in import ROUTE_KIND
from agentserving_operator.observe.reasons import Reason, Trouble
from agentserving_operator.spec.gateway import ServiceType

Objects = Mapping[tuple[str, str], Manifest]


def entrances_of(cluster: AgentServingCluster, objects: Objects) -> tuple[list[str], list[Trouble]]:
    """Addresses that clients outside of the Kubernetes cluster can use, and what is not served."""
    gateway = cluster.spec.gateway
    addresses, troubles = list[str](), list[Trouble]()
    balanced = [
        ("Service", gateway.service_type is ServiceType.LOAD_BALANCER),
        ("Ingress", gateway.ingress is not None),
    ]
    for kind, asked in balanced:
        if not asked:
            continue
        found = _addresses(objects.get((kind, cluster.child(Component.GATEWAY))))
        addresses += [f"{kind} {each}" for each in found]
        if not found:
            troubles.append(_no_address(cluster, kind))
    if gateway.http_route is not None:
        refusals = list(_refusals(cluster, objects.get((ROUTE_KIND, cluster.name))))
        troubles += refusals
        addresses += [] if refusals else [f"{ROUTE_KIND} {each.name}" for each in gateway.http_route.parent_refs]
    return addresses, troubles


def _addresses(live: Manifest | None) -> list[str]:
    entries = ((live or {}).get("status") or {}).get("loadBalancer", {}).get("ingress") or []
    return [str(each.get("hostname") or each.get("ip")) for each in entries]


def _no_address(cluster: AgentServingCluster, kind: str) -> Trouble:
    name = cluster.child(Component.GATEWAY)
    if kind == "Service":
        message = (
            f"Service {name} has no address: nothing in this Kubernetes cluster provides load balancers, or not yet"
        )
        return Trouble(Reason.NO_ADDRESS, f"{message}; set spec.gateway.serviceType otherwise if there is no provider")
    ingress = cluster.spec.gateway.ingress
    chosen = f"class {ingress.class_name}" if ingress and ingress.class_name else "the default class"
    message = f"Ingress {name} has no address: no ingress controller serves {chosen}, or not yet"
    return Trouble(Reason.NO_ADDRESS, f"{message}; see `kubectl get ingressclass` and the controller's log")


def _refusals(cluster: AgentServingCluster, route: Manifest | None) -> Iterator[Trouble]:
    """What Gateways say of the route; one that says nothing does not exist, or its controller does not run."""
    wanted = cluster.spec.gateway.http_route
    said: dict[tuple[str, str, str], list[Any]] = {}
    for each in ((route or {}).get("status") or {}).get("parents") or []:
        said.setdefault(_parent(each["parentRef"], cluster), []).extend(each.get("conditions") or [])
    for reference in wanted.parent_refs if wanted else ():
        namespace = reference.namespace or cluster.namespace
        about = f"HTTPRoute {cluster.name}, Gateway {namespace}/{reference.name}"
        conditions = said.get((namespace, reference.name, reference.section_name or ""))
        if not conditions:
            message = (
                "no controller has accepted or refused the route: is there such a Gateway, and does its controller run?"
            )
            yield Trouble(Reason.ROUTE_NOT_ACCEPTED, f"{about}: {message}")
            continue
        for each in conditions:
            if each["type"] in ("Accepted", "ResolvedRefs") and each["status"] != "True":
                message = each.get("message") or each.get("reason", "")
                yield Trouble(Reason.ROUTE_NOT_ACCEPTED, f"{about}: {each['type']} is {each['status']}: {message}")


def _parent(reference: Mapping[str, Any], cluster: AgentServingCluster) -> tuple[str, str, str]:
    return reference.get("namespace") or cluster.namespace, reference["name"], reference.get("sectionName") or ""
