"""Repeated SIGKILL of the control plane and of sidecars under load: no report is lost or counted twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time

import pytest
from support.accounted_load import Load, assert_same
from support.eventually import eventually_async
from support.killable_cluster import KillableCluster

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(480)]

KILLS = 20
# Further kills if none so far hit the two moments that matter most: before a commit, and during the end of a call.
MAX_KILLS = 60
CLIENTS = 16


async def kill_and_restart(cluster: KillableCluster, load: Load, dice: random.Random) -> None:
    """Kills the control plane at a random moment under load, sometimes together with a sidecar."""
    enough = load.admitted + dice.randint(1, 40)
    await eventually_async(lambda: load.admitted >= enough, poll_s=0.001)
    load.adopted += await asyncio.to_thread(cluster.control_plane.metric, "agentserving_calls_adopted_total")
    enough = load.admitted + dice.randint(0, 10)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            while load.admitted < enough:
                await asyncio.sleep(0.001)
    sidecar = dice.choice(list(cluster.sidecars.values())) if dice.random() < 0.4 else None
    if sidecar is not None:
        await asyncio.to_thread(sidecar.kill)
    await asyncio.to_thread(cluster.control_plane.kill)
    await asyncio.sleep(dice.uniform(0, 0.2))
    cluster.control_plane.start()
    if sidecar is not None:
        sidecar.start()
    await asyncio.to_thread(cluster.control_plane.wait_ready)


async def test_nothing_is_lost_or_counted_twice_when_the_control_plane_is_killed_repeatedly() -> None:
    seed = int(os.environ.get("AGENTSERVING_TEST_SEED") or random.randrange(1_000_000))
    print(f"seed {seed}: AGENTSERVING_TEST_SEED={seed} repeats the choices")
    dice = random.Random(seed)
    began = time.monotonic()
    async with KillableCluster() as cluster:
        load = Load(cluster, dice)
        await load.open_programs()
        clients = [asyncio.create_task(load.client()) for _ in range(CLIENTS)]
        kills = 0
        while kills < KILLS or (kills < MAX_KILLS and not (load.adopted and load.finished_while_away)):
            await kill_and_restart(cluster, load, dice)
            kills += 1
        load.stopping = True
        async with asyncio.timeout(120):
            await asyncio.gather(*clients)
        for sidecar in cluster.sidecars.values():
            await asyncio.to_thread(sidecar.wait_ready)
        await cluster.acknowledged()
        await cluster.restart_control_plane()
        assert_same(await cluster.table(), load.truth)
        calls = sum(load.truth.calls.values())
        print(
            f"{kills} kills, {calls} calls, {load.finished_while_away} finished without a control plane, "
            f"{load.adopted:.0f} or more adopted, refused {dict(load.failures)}, {time.monotonic() - began:.1f} s"
        )
        assert calls > 200
        assert load.finished_while_away > 0
        assert load.adopted > 0
