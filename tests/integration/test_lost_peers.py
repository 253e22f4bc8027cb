"""Peers that disappear without closing or resetting their connections."""

from __future__ import annotations

import signal

import pytest
from agentserving.v1 import admin_service_pb2, types_pb2
from support.eventually import eventually_async
from support.killable_cluster import KillableCluster


async def state_of(cluster: KillableCluster, engine_id: str) -> types_pb2.EngineState.ValueType:
    """The state of an engine in the control plane's overview."""
    overview = await cluster.admin.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=30)
    (found,) = [each.state for each in overview.engines if each.engine_id == engine_id]
    return found


@pytest.mark.etcd
async def test_an_engine_is_lost_while_its_sidecar_does_not_respond() -> None:
    async with KillableCluster() as cluster:

        async def until_it_is(wanted: types_pb2.EngineState.ValueType) -> None:
            async def reached() -> bool:
                return await state_of(cluster, "e1") == wanted

            await eventually_async(reached, f"e1 is {types_pb2.EngineState.Name(wanted)}")

        await until_it_is(types_pb2.ENGINE_STATE_READY)
        cluster.sidecars["e1"].signal(signal.SIGSTOP)
        try:
            await until_it_is(types_pb2.ENGINE_STATE_LOST)
            assert await state_of(cluster, "e0") == types_pb2.ENGINE_STATE_READY
        finally:
            cluster.sidecars["e1"].signal(signal.SIGCONT)
        await until_it_is(types_pb2.ENGINE_STATE_READY)
