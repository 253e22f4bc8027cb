"""A hold, and its release, reach engines over the death of sidecars and of the control plane."""

from __future__ import annotations

import asyncio

import pytest
from agentserving.contract.channel import SetHolds
from agentserving.v1 import program_service_pb2, types_pb2
from support.killable_cluster import KillableCluster, until
from support.scripted_engine import ScriptedEngine

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(120)]


def holds(engine: ScriptedEngine) -> list[str] | None:
    """What the engine was told last to hold; None before the first word."""
    told = [message.program_ids for message in engine.told if isinstance(message, SetHolds)]
    return told[-1] if told else None


async def test_a_release_reaches_an_engine_whose_sidecar_was_dead_and_a_hold_survives_the_control_plane() -> None:
    async with KillableCluster(engines=1) as cluster:
        engine, sidecar = cluster.engines["e0"], cluster.sidecars["e0"]
        for program, parent in (("a", ""), ("a/child", "a"), ("b", "")):
            await cluster.programs.OpenProgram(
                program_service_pb2.OpenProgramRequest(program_id=program, parent_program_id=parent)
            )
        for program in ("a/child", "b"):
            await cluster.programs.PauseProgram(program_service_pb2.PauseProgramRequest(program_id=program))
        await until(lambda: holds(engine) == ["a", "b"])

        await asyncio.to_thread(sidecar.kill)
        await cluster.programs.ResumeProgram(program_service_pb2.ResumeProgramRequest(program_id="a"))
        assert holds(engine) == ["a", "b"]
        sidecar.start()
        await until(lambda: holds(engine) == ["b"])

        engine.told.clear()
        await cluster.restart_control_plane()
        await until(lambda: holds(engine) == ["b"])
        state = (await cluster.table())["b"].state
        assert state == types_pb2.PROGRAM_STATE_PAUSED
