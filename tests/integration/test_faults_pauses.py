"""Pauses and resumes reach engines across deaths of sidecars and of the control plane."""

from __future__ import annotations

import asyncio

import pytest
from agentserving.contract.channel import SetPaused
from agentserving.v1 import program_service_pb2, types_pb2
from support.killable_cluster import KillableCluster, until
from support.scripted_engine import ScriptedEngine

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(120)]


def paused(engine: ScriptedEngine) -> list[tuple[str, str]] | None:
    """(tenant, program) of the programs that the engine was last asked to pause; None before the first message."""
    messages = [message.programs for message in engine.received if isinstance(message, SetPaused)]
    return sorted((tenant, program) for tenant, program in messages[-1]) if messages else None


A, B = ("default", "a"), ("default", "b")


async def test_a_resume_reaches_an_engine_whose_sidecar_was_dead_and_a_pause_survives_the_control_plane() -> None:
    async with KillableCluster(engines=1) as cluster:
        engine, sidecar = cluster.engines["e0"], cluster.sidecars["e0"]
        for program, parent in (("a", ""), ("a/child", "a"), ("b", "")):
            await cluster.programs.OpenProgram(
                program_service_pb2.OpenProgramRequest(program_id=program, parent_program_id=parent)
            )
        for program in ("a/child", "b"):
            await cluster.programs.PauseProgram(program_service_pb2.PauseProgramRequest(program_id=program))
        await until(lambda: paused(engine) == [A, B])

        await asyncio.to_thread(sidecar.kill)
        await cluster.programs.ResumeProgram(program_service_pb2.ResumeProgramRequest(program_id="a"))
        assert paused(engine) == [A, B]
        sidecar.start()
        await until(lambda: paused(engine) == [B])

        engine.received.clear()
        await cluster.restart_control_plane()
        await until(lambda: paused(engine) == [B])
        state = (await cluster.table())["b"].state
        assert state == types_pb2.PROGRAM_STATE_PAUSED
