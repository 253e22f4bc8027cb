"""Which connections the NetworkPolicies of a cluster allow, besides those between its own parts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agentserving_operator.spec.fields import DNS_SUBDOMAIN, choice, integer, items, text

CIDR = r"^[0-9a-fA-F:.]+/[0-9]{1,3}$"
NAMESPACE = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"


class Egress(StrEnum):
    """What the cluster's pods may connect to."""

    CLOSED = "Closed"
    OPEN = "Open"


class IpFamilyPolicy(StrEnum):
    """As in Kubernetes."""

    SINGLE_STACK = "SingleStack"
    PREFER_DUAL_STACK = "PreferDualStack"
    REQUIRE_DUAL_STACK = "RequireDualStack"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Addresses from which engines load models."""

    cidr: str = text(
        "IP range. 0.0.0.0/0 and ::/0 stand for the internet, without private addresses.", 43, pattern=CIDR
    )
    port: int = integer("TCP port.", 1, 65_535, default=443)


INTERNET = (ModelSource(cidr="0.0.0.0/0"), ModelSource(cidr="::/0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Address families, and NetworkPolicies, which take effect with a network plug-in that enforces them."""

    ip_family_policy: IpFamilyPolicy | None = choice(
        "Of all Services; absent: SingleStack, Kubernetes' default.", default=None
    )
    ip_families: tuple[str, ...] = items(
        "IPv4 and IPv6 in the order of your Kubernetes cluster, whose first family is that of pods' addresses: [IPv6] "
        "where there is no other, [IPv4, IPv6] or [IPv6, IPv4] with two stacks. Empty: IPv4 in pods, and in Services "
        "the Kubernetes cluster's own default.",
        2, max_length=4, pattern=r"^IPv[46]$",
    )  # fmt: skip

    egress: Egress = choice(
        "Closed: each part connects to DNS and to the parts that it needs, control planes to their store, and engines "
        "to modelSources. Open: to anything.",
        default=Egress.CLOSED,
    )
    model_sources: tuple[ModelSource, ...] = items(
        "Where engines of type VLLM load models from; by default the internet, by HTTPS. Empty: nowhere, for models "
        "that are on a volume or in the image. A mirror in your network: its IP range and port.",
        16,
        default=INTERNET,
    )
    metrics_namespaces: tuple[str, ...] = items(
        "Namespaces whose pods may read metrics, such as Prometheus's. Probes of the kubelet need no permission.",
        16,
        list_type="set",
        default=("monitoring",),
        max_length=63,
        pattern=NAMESPACE,
    )
    metrics_token_secret_name: str | None = text(
        "Secret whose `token` readers of metrics must send as a bearer token (the chart's monitoring.tokenSecret makes "
        "Prometheus do so). Absent: pods of metricsNamespaces need none. etcd's own metrics need none either way.",
        253,
        default=None,
        pattern=DNS_SUBDOMAIN,
    )

    @property
    def listens_on_ipv6(self) -> bool:
        """Whether pods may have IPv6 addresses; without any, kernels may lack the family."""
        return "IPv6" in self.ip_families or self.ip_family_policy not in (None, IpFamilyPolicy.SINGLE_STACK)

    @property
    def pods_are_on_ipv6(self) -> bool:
        """Whether the address of a pod is one of IPv6."""
        return self.ip_families[:1] == ("IPv6",)
