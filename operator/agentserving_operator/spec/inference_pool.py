"""The part of the spec about gateways of the user's own (Gateway API Inference Extension)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agentserving_operator.spec.fields import choice, flag, items
from agentserving_operator.spec.network import CIDR, NAMESPACE


class FailureMode(StrEnum):
    """As in the Gateway API Inference Extension."""

    OPEN = "FailOpen"
    CLOSE = "FailClose"


@dataclass(frozen=True, slots=True, kw_only=True)
class InferencePool:
    """The engines as a backend of a gateway of yours (Gateway API Inference Extension)."""

    enabled: bool = flag("Creates an InferencePool of the cluster's name, with the picker behind it.", default=False)
    failure_mode: FailureMode = choice(
        "What the gateway does while no picker answers. FailOpen: it chooses an engine itself, and the call is served "
        "without its program's account. FailClose: it refuses the call. Always FailClose where clients "
        "have keys: they would not be checked.",
        default=FailureMode.OPEN,
    )
    tls: bool = flag(
        "Whether the picker serves TLS with a self-signed certificate, as most gateways expect.", default=True
    )
    gateway_namespaces: tuple[str, ...] = items(
        "Namespaces of gateways' pods that may connect to engines, such as envoy-gateway-system. Pods in the cluster's "
        "own namespace are allowed by the label agentserving.io/client: \"true\".",
        16, list_type="set", max_length=63, pattern=NAMESPACE,
    )  # fmt: skip
    gateway_cidrs: tuple[str, ...] = items(
        "Addresses of gateways outside of the pod network, such as GKE's proxy-only subnet, that may connect to "
        "engines.",
        16, list_type="set", max_length=43, pattern=CIDR,
    )  # fmt: skip
