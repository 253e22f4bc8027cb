"""SIGKILL of the leader while agents stream: admissions resume, no stream breaks, no call is counted twice."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from support.killable_cluster import until
from support.streaming_cluster import Agents, StreamingCluster

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(240)]

LEASE_S = 5
PROGRAMS = 20
# From the kill to the next admission. Measured 4.1 to 6.2 s on two idle cores; a busy machine takes longer.
RESUME_BOUND_S = 3 * (LEASE_S + 3)
KILLS = int(os.environ.get("AGENTSERVING_TEST_KILLS", "2"))


async def kill_the_leader(cluster: StreamingCluster, agents: Agents) -> float:
    """Seconds from the kill to the first admission of a later call. Restarts the process as a follower."""
    old = await cluster.leader()
    await asyncio.to_thread(cluster.planes[old].kill)
    killed = time.monotonic()
    # A call that began just before may have been admitted by the old leader.
    after = killed + 0.2

    def resumed() -> list[float]:
        return [answered for began, answered in agents.admitted if began > after]

    await until(resumed, 60)
    await cluster.leader(but=old)
    cluster.planes[old].start()
    await cluster.follows(old)
    return min(resumed()) - killed


async def test_admissions_resume_soon_after_the_lease_and_no_stream_breaks() -> None:
    async with StreamingCluster(planes=2, lease_s=LEASE_S) as cluster:
        agents = Agents(cluster.url, "short", PROGRAMS, tokens=60)
        long = Agents(cluster.url, "long", 4, tokens=1000)
        running = [asyncio.create_task(each.run()) for each in (agents, long)]
        await until(lambda: len(agents.admitted) >= PROGRAMS)
        gaps = [await kill_the_leader(cluster, agents) for _ in range(KILLS)]
        at = len(agents.admitted)
        await until(lambda: len(agents.admitted) >= at + PROGRAMS)
        agents.stop()
        long.stop()
        async with asyncio.timeout(120):
            await asyncio.gather(*running)
        await until(
            lambda: all(s.metric("agentserving_sidecar_unacked_reports") == 0 for s in cluster.sidecars.values())
        )
        table = await cluster.table(await cluster.leader())
        print(
            f"admissions resumed after {', '.join(f'{gap:.2f}' for gap in gaps)} s; {agents.streams + long.streams} "
            f"streams, {len([*agents.broken, *long.broken])} broken, {agents.unmanaged + long.unmanaged} unmanaged"
        )
        assert not [*agents.broken, *long.broken]
        assert long.streams >= 4
        for each in (agents, long):
            for name, row in ((program, table[program]) for program in each.programs):
                assert (row.calls_completed, row.output_tokens) == (each.calls[name], each.tokens[name]), name
                assert not row.calls
        assert max(gaps) < RESUME_BOUND_S
