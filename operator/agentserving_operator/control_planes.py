"""The one door to control planes, through the project's own client: puts the policy in force, asks how things are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from agentserving import AsyncClient
from agentserving.client.values import Balancer
from agentserving.transport.connection import Pem, Settings
from agentserving.transport.errors import AgentServingError, InvalidArgumentError

from agentserving_operator.manifests.common import Component, Port, service_address
from agentserving_operator.observe.status import Overview
from agentserving_operator.spec.scheduling import Balancer as BalancerName
from agentserving_operator.spec.scheduling import Scheduling, to_policy

BALANCERS = {
    BalancerName.ROUND_ROBIN: Balancer.ROUND_ROBIN,
    BalancerName.LEAST_USED: Balancer.LEAST_USED,
    BalancerName.PROGRAM_LOCALITY: Balancer.PROGRAM_LOCALITY,
    BalancerName.PREFIX_AWARE: Balancer.PREFIX_AWARE,
}
DEADLINE_S = 3.0


class PolicyRefusedError(Exception):
    """The control plane does not take the policy; the message is its own."""


async def settle(
    address: str, scheduling: Scheduling, generation: int, tls: Pem | None = None
) -> Overview | None:  # fmt: skip
    """Makes the policy what the spec says, and gives the overview; None when the control plane does not answer.

    Compared by value, so it is the same whoever asked before, and a policy set by hand is set back.
    """
    wanted, balancer = to_policy(scheduling), BALANCERS[scheduling.balancer]
    async with AsyncClient(address, settings=Settings(tls=tls, deadline_s=DEADLINE_S, attempts=1)) as client:
        try:
            found = await client.get_policy()
            if (found.policy, found.balancer) != (wanted, balancer):
                await client.set_policy(wanted, balancer=balancer)
                found = await client.get_policy()
            told = await client.get_overview()
        except InvalidArgumentError as error:
            raise PolicyRefusedError(str(error)) from error
        except AgentServingError:
            return None
    return Overview(
        programs=told.programs_live,
        policy_name=found.policy.name,
        policy_version=found.version,
        policy_generation=generation,
        pending_engines=len(found.pending_engine_ids),
        store_healthy=told.store_healthy,
        store_message=told.store_message,
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    """To what a control plane was asked last."""

    scheduling: Scheduling
    generation: int
    tls: Pem | None
    overview: Overview | None


class ControlPlanes:
    """All of them, with what each said last."""

    def __init__(self) -> None:
        self._last: dict[str, _Answer] = {}

    async def settle(
        self, address: str, scheduling: Scheduling, generation: int, tls: Pem | None = None
    ) -> Overview | None:  # fmt: skip
        """As the function; remembered."""
        self._last.pop(address, None)
        overview = await settle(address, scheduling, generation, tls)
        self._last[address] = _Answer(scheduling, generation, tls, overview)
        return overview

    async def is_as_known(self, namespace: str, name: str) -> bool:
        """Asks the control plane of a cluster what it was asked last; False when that would be news to its status.

        One that was never asked does not serve: its Deployment will tell, which is watched.
        """
        address = _address(namespace, name)
        last = self._last.get(address)
        if last is None:
            return True
        try:
            return await settle(address, last.scheduling, last.generation, last.tls) == last.overview
        except PolicyRefusedError:
            return False

    def retain(self, clusters: Collection[tuple[str, str]]) -> None:
        """Forgets all but those, by namespace and name."""
        addresses = {_address(*each) for each in clusters}
        self._last = {address: answer for address, answer in self._last.items() if address in addresses}


def _address(namespace: str, name: str) -> str:
    return service_address(namespace, name, Component.CONTROL_PLANE, Port.CONTROL_PLANE)
