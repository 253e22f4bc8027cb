"""Budgets on real processes: what etcd has of a tree decides, across the end of a leader and repeated additions."""

from __future__ import annotations

import asyncio

import pytest
from agentserving import AsyncClient
from agentserving.client.values import PauseCause, Program, ProgramState
from agentserving.contract.budgets import Budget
from agentserving.transport.connection import Settings
from agentserving.transport.errors import AgentServingError
from support.killable_cluster import KillableCluster

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(180)]


async def run(cluster: KillableCluster, client: AsyncClient, program: str, *, tokens: int) -> None:
    """A call that an engine runs to its end; its last report is durable."""
    call = await client.admit(program)
    await cluster.engines[call.engine_id].run(call.ticket, [(0.0, 1_000_000)], 0, tokens)
    await cluster.acknowledged()


async def refused(client: AsyncClient, program: str) -> str:
    """Reason of the refusal of a call."""
    with pytest.raises(AgentServingError) as error:
        await client.admit(program)
    return error.value.reason


def facts(program: Program) -> tuple[ProgramState, PauseCause, Budget | None, Budget | None]:
    state = program.budget
    return program.state, program.pause_cause, state and state.limit, state and state.spent


async def test_a_spent_budget_outlives_its_leader_and_an_addition_is_added_once() -> None:
    async with KillableCluster(engines=1, planes=2, lease_s=3) as cluster:
        client = AsyncClient(cluster.addresses, settings=Settings(tls=None, deadline_s=60))
        try:
            await client.open_program("run", program_id="root", budget="tokens=100,engine-seconds=300")
            await client.open_program("part", program_id="child", parent_program_id="root")
            await run(cluster, client, "root", tokens=60)
            await run(cluster, client, "child", tokens=60)
            assert await refused(client, "root") == "PROGRAM_BUDGET_SPENT"

            old = await cluster.leader()
            await asyncio.to_thread(cluster.planes[old].kill)
            new = await cluster.leader(but=old)
            limit = Budget(tokens=100, engine_us=300_000_000)
            paused = (ProgramState.PAUSED, PauseCause.BUDGET, limit, Budget(tokens=120, engine_us=2_000_000, calls=2))
            for program in ("root", "child"):
                assert facts(await client.get_program(program)) == paused
                assert await refused(client, program) == "PROGRAM_BUDGET_SPENT"
            with pytest.raises(AgentServingError, match="stays paused") as stays:
                await client.resume_program("child")
            assert stays.value.reason == "BUDGET_SPENT"

            # The answer to an addition may be lost, and its leader with it: it is sent again, to another one.
            await client.resume_program("child", add="tokens=50", addition_id="a1")
            cluster.planes[old].start()
            await asyncio.to_thread(cluster.planes[old].wait_ready)
            await asyncio.to_thread(cluster.planes[new].kill)
            await cluster.leader(but=new)
            resumed = await client.resume_program("child", add="tokens=50", addition_id="a1")
            assert resumed.budget is not None
            assert (resumed.budget.limit.tokens, resumed.state) == (150, ProgramState.ACTIVE)
            await cluster.attached()
            await run(cluster, client, "root", tokens=1)
            assert facts(await client.get_program("root"))[3] == Budget(tokens=121, engine_us=3_000_000, calls=3)
        finally:
            await client.close()
