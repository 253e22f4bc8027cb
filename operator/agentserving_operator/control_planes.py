"""The only module that talks to control planes, through the project's own client: applies the policy and
tenants, reads the state, drains engines.

Nothing in Kubernetes changes when a program begins or an engine hangs, so no watch reports it. `ControlPlanes`
therefore remembers what each control plane said last, and a round over all clusters asks whether that is still so.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from agentserving import AsyncClient
from agentserving.client import values
from agentserving.transport.connection import Pem, Settings
from agentserving.transport.errors import AgentServingError, InvalidArgumentError, NotFoundError

from agentserving_operator.manifests.common import Component, Port, service_address
from agentserving_operator.observe.overview import EngineState, EngineView, Overview, Rejections
from agentserving_operator.observe.tenants import Outcome
from agentserving_operator.scaling.decision import Need, ScaleReason
from agentserving_operator.scaling.plan import Answer, Work
from agentserving_operator.spec.scheduling import Balancer, Scheduling, to_policy

BALANCERS = {
    Balancer.ROUND_ROBIN: values.Balancer.ROUND_ROBIN,
    Balancer.LEAST_USED: values.Balancer.LEAST_USED,
    Balancer.PROGRAM_LOCALITY: values.Balancer.PROGRAM_LOCALITY,
    Balancer.PREFIX_AWARE: values.Balancer.PREFIX_AWARE,
}
DEADLINE_S = 3.0
# An engine has at most about a kilobyte in an overview, so this is for 2,000 of them. In memory a response takes about
# thirty times as much, and anyone who controls a namespace may answer in a control plane's place.
MAX_RESPONSE_BYTES = 2 << 20


class PolicyRefusedError(Exception):
    """The control plane refuses the policy; the message is the control plane's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A control plane and what it should do. `generation` is that of the spec; `tls` None = in the clear."""

    address: str
    scheduling: Scheduling
    generation: int
    tls: Pem | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """What a control plane was asked last, what it answered, and the tickets that its engines rejected."""

    target: Target
    overview: Overview | None
    rejections: Rejections


class ControlPlanes:
    """All control planes, with their last answers. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._clients: dict[str, tuple[Pem | None, AsyncClient]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def apply_policy(self, target: Target) -> Overview | None:
        """Sets the policy of the spec if another one is in force. Returns the state after that; None = no answer.

        Policies are compared by value, so it does not matter what was applied before, and a policy that somebody
        set by hand is replaced. Raises PolicyRefusedError.
        """
        # An exception leaves nothing behind that a round could compare with.
        known = self._known.pop(target.address, None)
        wanted, balancer = to_policy(target.scheduling), BALANCERS[target.scheduling.balancer]
        async with _client(target) as client:
            try:
                in_force = await client.get_policy()
                if (in_force.policy, in_force.balancer) != (wanted, balancer):
                    await client.set_policy(wanted, balancer=balancer)
                    in_force = await client.get_policy()
                state = await client.get_overview()
            except InvalidArgumentError as error:
                raise PolicyRefusedError(str(error)) from error
            except AgentServingError:
                self._known[target.address] = _Known(target, None, known.rejections if known else Rejections())
                return None
        seen = self._seen(target, in_force, state, known.rejections if known else Rejections())
        self._known[target.address] = seen
        return seen.overview

    async def has_changed(self, namespace: str, name: str) -> bool:
        """Whether the control plane of a cluster would now answer a visit differently than the last one. Only reads.

        A control plane that was never visited does not serve yet; its Deployment, which is watched, will say when.
        """
        address = _address(namespace, name)
        known = self._known.get(address)
        if known is None:
            return False
        async with _client(known.target) as client:
            try:
                in_force, state = await client.get_policy(), await client.get_overview()
            except AgentServingError:
                return known.overview is not None
        seen = self._seen(known.target, in_force, state, known.rejections)
        # Another visit may have come between.
        if self._known.get(address) is known:
            self._known[address] = _Known(known.target, known.overview, seen.rejections)
        scheduling = known.target.scheduling
        is_ours = (in_force.policy, in_force.balancer) == (to_policy(scheduling), BALANCERS[scheduling.balancer])
        return not is_ours or seen.overview != known.overview

    async def apply_tenants(
        self, target: Target, wanted: Mapping[str, values.TenantSettings], forget: Collection[str]
    ) -> Outcome:
        """Sets what differs, by value, and removes the tenants of `forget`. Other tenants are left alone."""
        refused, forgotten = dict[str, str](), set[str]()
        async with _client(target) as client:
            try:
                there = {str(each.tenant): each async for each in client.list_tenants()}
                for tenant, settings in wanted.items():
                    if there.get(tenant) != settings:
                        try:
                            await client.set_tenant(**dataclasses.asdict(settings))
                        except InvalidArgumentError as error:
                            refused[tenant] = str(error)
                for tenant in forget:
                    if tenant in there:
                        await client.remove_tenant(tenant)
                    forgotten.add(tenant)
            except AgentServingError as error:
                return Outcome(refused=refused, forgotten=frozenset(forgotten), error=str(error))
        return Outcome(refused=refused, forgotten=frozenset(forgotten))

    # -- scaling (scaler.Planes) ---------------------------------------------------------------------------------

    async def need(self, target: Target) -> Answer | None:
        """What live programs need. None: no answer, or one of a control plane that is older than autoscaling."""
        try:
            demand = await self._standing_client(target).get_demand()
        except AgentServingError:
            return None
        needed = demand.needed
        engines = {
            ScaleReason.CONTEXT: needed.context, ScaleReason.CALLS: needed.calls,
            ScaleReason.SERVICE: needed.service, ScaleReason.WAITING: needed.waiting,
        }  # fmt: skip
        work = {
            str(each.engine_id): Work(kept_tokens=each.kept_tokens, calls=each.calls_in_flight)
            for each in demand.engines
        }
        need = Need(engines=engines, calls=demand.calls + demand.calls_held, programs=demand.programs)
        return Answer(need=need, work=work)

    async def drain(self, target: Target, engine_id: str, drained: bool) -> bool:
        """Begins or ends a drain; True when it is so, also for an engine that the control plane does not know."""
        client = self._standing_client(target)
        try:
            await (client.drain_engine(engine_id) if drained else client.undrain_engine(engine_id))
        except NotFoundError:
            return True
        except AgentServingError:
            return False
        return True

    def _standing_client(self, target: Target) -> AsyncClient:
        """One for each control plane that is asked every second: a handshake costs more than the question."""
        known = self._clients.get(target.address)
        if known is None or known[0] != target.tls:
            if known is not None:
                self._close(known[1])
            known = self._clients[target.address] = target.tls, _client(target)
        return known[1]

    def _close(self, client: AsyncClient) -> None:
        task = asyncio.get_running_loop().create_task(client.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def retain(self, clusters: Collection[tuple[str, str]]) -> None:
        """Forgets the control planes of all clusters but these (namespace, name)."""
        addresses = {_address(*each) for each in clusters}
        self._known = {address: known for address, known in self._known.items() if address in addresses}
        for address in [each for each in self._clients if each not in addresses]:
            self._close(self._clients.pop(address)[1])

    def _seen(
        self, target: Target, in_force: values.PolicyVersion, state: values.Overview, before: Rejections
    ) -> _Known:
        now_s = self._clock()
        counts = [(each.engine_id, each.boot_id, each.load.rejected_tickets) for each in state.engines]
        rejections = before.after(counts, now_s)
        overview = Overview(
            programs=state.programs_live,
            policy_name=in_force.policy.name,
            policy_version=in_force.version,
            policy_generation=target.generation,
            pending_engines=len(in_force.pending_engine_ids),
            store_healthy=state.store_healthy,
            store_message=state.store_message,
            engines=tuple(sorted(map(_engine_view, state.engines), key=lambda view: view.engine_id)),
            rejecting_engines=rejections.rejecting(now_s),
            policy_chosen=next((each.chosen for each in in_force.choices if each.application is None), None),
            retains=in_force.policy.retention_milli > 0,
            bounds=in_force.policy.working_set,
        )
        return _Known(target, overview, rejections)


def _client(target: Target) -> AsyncClient:
    settings = Settings(
        tls=target.tls, deadline_s=DEADLINE_S, attempts=1, max_response_bytes=MAX_RESPONSE_BYTES
    )  # fmt: skip
    return AsyncClient(target.address, settings=settings)


def _engine_view(engine: values.Engine) -> EngineView:
    name = engine.state.name
    state = EngineState(name) if name in EngineState.__members__ else EngineState.UNSPECIFIED
    able = engine.capabilities
    return EngineView(
        engine.engine_id, state, engine.state_reason, able.retention_obstacle, able.working_set_obstacle
    )  # fmt: skip


def _address(namespace: str, name: str) -> str:
    return service_address(namespace, name, Component.CONTROL_PLANE, Port.CONTROL_PLANE)
