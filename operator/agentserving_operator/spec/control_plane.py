"""The control plane in the API."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving_operator.spec.budgets import ProgramBudget
from agentserving_operator.spec.fields import choice, integer, struct
from agentserving_operator.spec.parts import Resources
from agentserving_operator.spec.pod_template import PodTemplate
from agentserving_operator.spec.scheduling import ServiceClass


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """The process table, the load balancer and the policy."""

    replicas: int = integer("One leads, the others stand by. More than 1 need an etcd.", 1, 5, default=1)
    program_idle_seconds: int = integer("A program without calls for this long expires.", 1, 604_800, default=600)
    program_budget: ProgramBudget | None = struct(
        "Budget of each program that is opened without one; absent: none. Its tenant's counts before it.", default=None
    )
    service_class: ServiceClass = choice("Of programs that get none otherwise.", default=ServiceClass.STANDARD)
    resources: Resources = struct("Requests and limits.", default=Resources)
    template: PodTemplate | None = struct("More about its pods; the container is control-plane.", default=None)
