"""The part of the spec about gateways: the front that agents connect to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from agentserving.contract.program_headers import MAX_NAME as MAX_NAME_OF_HEADER

from agentserving_operator.spec.fields import Rule, choice, flag, integer, items, struct
from agentserving_operator.spec.inference_pool import InferencePool
from agentserving_operator.spec.parts import Resources
from agentserving_operator.spec.pod_template import PodTemplate
from agentserving_operator.spec.program_headers import IGNORED_ARE_KNOWN, ProgramHeader
from agentserving_operator.spec.tls import FrontTls
from agentserving_operator.spec.ways_in import HttpRoute, Ingress


class ServiceType(StrEnum):
    """As in Kubernetes."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The OpenAI-compatible front: in each pod an Envoy and its picker."""

    RULES: ClassVar[tuple[Rule, ...]] = (IGNORED_ARE_KNOWN,)

    replicas: int = integer("Number of gateways; they are stateless.", 1, 64, default=1)
    service_type: ServiceType = choice("Type of its Service.", default=ServiceType.CLUSTER_IP)
    port: int | None = integer("Port of the Service; absent: 80, or 443 with tls.", 1, 65_535, default=None)
    tls: FrontTls | None = struct(
        "Clients use https, with your certificate; absent: http. HTTP/2 is offered with https only.", default=None
    )
    max_body_bytes: int = integer("Size limit of a request body.", 1_024, 1 << 30, default=64 << 20)
    group_by_content: bool = flag(
        "A call without an id whose messages extend those of an earlier call joins its program; false: it is a program "
        "of its own.",
        default=True,
    )
    program_headers: tuple[ProgramHeader, ...] = items(
        "Headers of your clients that name a program. They are looked for after x-agentserving-program-id and before "
        "those of known agents; the first that is there counts.",
        16, list_type="map", keys=("name",),
    )  # fmt: skip
    ignored_program_headers: tuple[str, ...] = items(
        "Headers of known agents that name no program here, such as x-session-id where a proxy sets it.",
        16, list_type="set", max_length=MAX_NAME_OF_HEADER, min_length=1,
    )  # fmt: skip
    drain_seconds: int = integer("How long a leaving gateway may finish its calls.", 0, 3_600, default=300)
    resources: Resources = struct("Requests and limits of Envoy.", default=Resources)
    picker_resources: Resources = struct(
        "Requests and limits of the picker; by default those of Envoy.", default=Resources
    )
    ingress: Ingress | None = struct("An Ingress that leads to gateways; absent: none.", default=None)
    http_route: HttpRoute | None = struct(
        "An HTTPRoute that leads to gateways (Gateway API); absent: none.", default=None
    )
    inference_pool: InferencePool = struct(
        "For users of another gateway that supports InferencePools.", default=InferencePool
    )
    template: PodTemplate | None = struct(
        "More about its pods; the containers are gateway (Envoy) and picker.", default=None
    )

    @property
    def service_port(self) -> int:
        return self.port or (80 if self.tls is None else 443)
