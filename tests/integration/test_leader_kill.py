"""SIGKILL of the leader while agents stream: admissions resume, no stream breaks, nothing is counted twice."""

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
KILLS = int(os.environ.get("AGENTSERVING_TEST_KILLS", "2"))


async def kill_the_leader(cluster: StreamingCluster, agents: Agents) -> float:
    """Seconds from its death to the first call that was begun after it and admitted; it is back, as a follower."""
    old = await cluster.leader()
    await asyncio.to_thread(cluster.planes[old].kill)
    killed = time.monotonic()
    # Taken in before it died, perhaps, and answered after.
    after = killed + 0.2

    def resumed() -> list[float]:
        return [answered for began, answered in agents.admitted if began > after]

    await until(resumed, 30)
    await cluster.leader(but=old)
    cluster.planes[old].start()
    await cluster.follows(old)
    return min(resumed()) - killed


async def test_admissions_resume_within_a_lease_and_three_seconds_and_no_stream_breaks() -> None:
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
        async with asyncio.timeout(60):
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
        assert max(gaps) < LEASE_S + 3
