"""Says on the terminal of `agentserving up` when an engine is not ready, and why: crashed, hung, loading, ejected.

The leader answers for the engines, so this also knows when there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping

from agentserving import AgentServingError, AsyncClient
from agentserving.client.values import Engine, EngineState
from agentserving.transport.connection import Settings

POLL_S = 0.5
# Often while the cluster starts, which waits for it.
STARTING_POLL_S = 0.1


async def watch_states(control_plane: str, api_key: str, tell: Callable[[str], None]) -> None:
    """Runs until it is cancelled. A control plane that does not answer has a message of its own."""
    states: dict[str, EngineState] = {}
    async with AsyncClient(control_plane, settings=Settings(tls=None, attempts=1, api_key=api_key)) as client:
        while True:
            try:
                engines = await client.list_engines()
            except AgentServingError:
                await asyncio.sleep(POLL_S)
                continue
            for line in changes(states, engines):
                tell(line)
            states = {engine.engine_id: engine.state for engine in engines}
            await asyncio.sleep(POLL_S)


async def until_given_calls(engine_ids: Collection[str], control_plane: str, api_key: str) -> None:
    """Returns when a control plane leads that gives calls to all of these engines: their sidecars know a moment earlier
    that they are ready."""
    async with AsyncClient(control_plane, settings=Settings(tls=None, attempts=1, api_key=api_key)) as client:
        while True:
            try:
                engines = await client.list_engines()
            except AgentServingError:
                engines = ()
            ready = {str(engine.engine_id) for engine in engines if engine.state is EngineState.READY}
            if ready.issuperset(engine_ids):
                return
            await asyncio.sleep(STARTING_POLL_S)


def changes(before: Mapping[str, EngineState], engines: Iterable[Engine]) -> list[str]:
    """One line for each engine whose state is another than before; engines are READY until they say otherwise."""
    lines = []
    for engine in engines:
        earlier = before.get(engine.engine_id, EngineState.READY)
        if engine.state is earlier:
            continue
        if engine.state is EngineState.READY:
            lines.append(f"{engine.engine_id} is ready again")
        else:
            reason = f": {engine.state_reason}" if engine.state_reason else ""
            lines.append(f"{engine.engine_id} is {engine.state.name.lower()} and gets no new calls{reason}")
    return lines
