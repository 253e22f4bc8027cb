"""What the control plane says about engines whose pods run, as a problem of the cluster. Pure.

A pod can be ready while its engine takes no calls: the engine process crashed or hangs behind a living sidecar, or it
answers every call with an error. Only the leading control plane knows that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from agentserving_operator.observe.overview import EngineState, EngineView
from agentserving_operator.observe.reasons import Reason, Trouble

# Worst first: the first state that any engine has gives the condition its reason. DRAINING is what somebody asked for.
_REASONS = {
    EngineState.DOWN: Reason.ENGINE_DOWN,
    EngineState.STUCK: Reason.ENGINE_STUCK,
    EngineState.FAILING: Reason.ENGINE_FAILING,
    EngineState.LOST: Reason.ENGINE_LOST,
    EngineState.LOADING: Reason.ENGINE_LOADING,
}
_MEANING = {
    EngineState.DOWN: "its process does not run or does not answer",
    EngineState.STUCK: "it makes no progress",
    EngineState.FAILING: "it answers calls with errors and is ejected for a while",
    EngineState.LOST: "its sidecar is not connected to the control plane",
    EngineState.LOADING: "it is loading the model",
}


def unavailable_engines(engines: Sequence[EngineView], pods: Collection[str]) -> list[EngineView]:
    """Engines that take no calls, worst first. `pods`: names of the pods that are not being deleted."""
    order = list(_REASONS)
    found = [each for each in engines if each.state in _REASONS and each.engine_id in pods]
    return sorted(found, key=lambda each: (order.index(each.state), each.engine_id))


def engine_trouble(engines: Sequence[EngineView], pods: Collection[str]) -> Trouble | None:
    """Why engines take no calls, naming each of them; None when all do."""
    unavailable = unavailable_engines(engines, pods)
    if not unavailable:
        return None
    described = (
        f"engine {each.engine_id} is {each.state}: {each.reason or _MEANING[each.state]}" for each in unavailable
    )
    return Trouble(_REASONS[unavailable[0].state], "; ".join(described))


def rejection_trouble(rejecting: Sequence[str]) -> Trouble | None:
    """Engines that reject tickets serve calls without their program's account; None when no engine does."""
    if not rejecting:
        return None
    return Trouble(
        Reason.TICKETS_REJECTED,
        f"{', '.join(rejecting)} rejected tickets of admitted calls in the last minutes, so these calls are scheduled "
        "without their program's account. Either a node's clock is wrong by minutes (check NTP on the nodes of control "
        "plane and engines), or somebody sends forged or repeated tickets",
    )
