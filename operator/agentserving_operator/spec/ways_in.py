"""The part of the spec about ways into a cluster from outside of Kubernetes: an Ingress and an HTTPRoute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from agentserving_operator.spec.fields import DNS_SUBDOMAIN, Rule, integer, items, mapping, text

# A host name, whose first label may be a wildcard.
HOST = r"^(\*\.)?[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingress:
    """An Ingress of the cluster's name, for an ingress controller of yours."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.tlsSecretName) || size(self.hosts) > 0",
            "tlsSecretName needs hosts: a controller chooses the certificate by the name that a client asks for",
            lambda i: i.tls_secret_name is None or bool(i.hosts),
            "tlsSecretName",
        ),
    )

    class_name: str | None = text(
        "Name of the IngressClass; absent: the default one.", 253, default=None, pattern=DNS_SUBDOMAIN
    )
    hosts: tuple[str, ...] = items(
        "Host names that clients use; empty: any. A wildcard stands for one label.",
        16, list_type="set", max_length=253, pattern=HOST,
    )  # fmt: skip
    tls_secret_name: str | None = text(
        "Secret of type kubernetes.io/tls for these hosts, such as cert-manager writes; absent: http.",
        253,
        default=None,
        pattern=DNS_SUBDOMAIN,
    )
    annotations: Mapping[str, str] = mapping(
        "Annotations for the controller or cert-manager. Ours for ingress-nginx (size of bodies, time-outs of streams) "
        "can be replaced here.",
        64,
        4_096,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentRef:
    """A Gateway that the route is attached to."""

    name: str = text("Name of the Gateway.", 253, min_length=1, pattern=DNS_SUBDOMAIN)
    namespace: str | None = text("Its namespace; absent: the cluster's.", 63, default=None, pattern=DNS_SUBDOMAIN)
    section_name: str | None = text("One listener of it; absent: all.", 253, default=None, pattern=DNS_SUBDOMAIN)
    port: int | None = integer("Listeners of this port only.", 1, 65_535, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRoute:
    """An HTTPRoute of the cluster's name, for Gateways of yours (Gateway API). TLS is the Gateway's."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "size(self.parentRefs) > 0",
            "parentRefs must name a Gateway: a route without one is served by none",
            lambda r: bool(r.parent_refs),
            "parentRefs",
        ),
    )

    parent_refs: tuple[ParentRef, ...] = items("Gateways that serve the route.", 16)
    hostnames: tuple[str, ...] = items(
        "Host names that clients use; empty: those of the listeners.",
        16, list_type="set", max_length=253, pattern=HOST,
    )  # fmt: skip
    path_prefix: str = text(
        "Requests below this path are the cluster's; the prefix is removed. With /llama clients use "
        "https://HOST/llama/v1.",
        256,
        default="/",
        pattern=r"^/([-._~a-zA-Z0-9]+(/[-._~a-zA-Z0-9]+)*)?$",
    )
    headers: Mapping[str, str] = mapping(
        "Headers that a request must have, by exact value: for several clusters behind one host by model name, the "
        "header that your gateway sets from the body, such as X-Gateway-Model-Name.",
        16,
        256,
    )
