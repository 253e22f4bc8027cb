"""Whether engines do all that the policy says, as a condition. Pure.

An engine orders and preempts calls under every policy. To retain KV during tool waits and to bound the working set it
must find contexts in its KV cache, which depends on the model and on how the engine was started.
"""

from __future__ import annotations

from collections.abc import Iterator

from agentserving.contract.kv_obstacles import KvObstacle, meaning

from agentserving_operator.observe.finding import Finding
from agentserving_operator.observe.overview import Overview
from agentserving_operator.observe.reasons import Reason, Trouble
from agentserving_operator.spec.status import ConditionStatus


def policy_in_force(overview: Overview | None) -> Finding:
    """False with the engines and the reason, when one of them leaves out a part of the policy."""
    if overview is None:
        return Finding(ConditionStatus.UNKNOWN, Reason.NOT_REACHABLE, "the control plane has not answered yet")
    name = overview.policy_name
    if overview.pending_engines:
        message = f"{overview.pending_engines} engines have not acknowledged policy {name}"
        return Finding(ConditionStatus.FALSE, Reason.POLICY_PENDING, message)
    omissions = list(_omissions(overview))
    if omissions:
        return Finding(ConditionStatus.FALSE, omissions[0].reason, "; ".join(each.message for each in omissions))
    loaded = [each.engine_id for each in overview.engines if each.retention_obstacle == KvObstacle.KV_CONNECTOR]
    if overview.retains and not overview.bounds and loaded:
        message = f"contexts are not retained during tool waits: {meaning(KvObstacle.KV_CONNECTOR)}"
        return Finding(ConditionStatus.TRUE, Reason.IN_FORCE, f"{', '.join(loaded)}: {message}")
    return Finding(ConditionStatus.TRUE, Reason.IN_FORCE, f"engines do all that policy {name} says")


def _omissions(overview: Overview) -> Iterator[Trouble]:
    engines = overview.engines
    if overview.bounds:
        for obstacle in dict.fromkeys(each.working_set_obstacle for each in engines if each.working_set_obstacle):
            names = ", ".join(each.engine_id for each in engines if each.working_set_obstacle == obstacle)
            yield Trouble(Reason.WORKING_SET_OFF, f"{names}: the working set is not bounded: {meaning(obstacle)}")
        return
    if overview.retains:
        # What a connector loads is not lost, so nothing is missing there.
        obstacles = {each.retention_obstacle for each in engines} - {"", KvObstacle.KV_CONNECTOR}
        for obstacle in sorted(obstacles):
            names = ", ".join(each.engine_id for each in engines if each.retention_obstacle == obstacle)
            yield Trouble(
                Reason.RETENTION_OFF, f"{names}: contexts are not retained during tool waits: {meaning(obstacle)}"
            )
