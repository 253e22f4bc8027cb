"""Every task of a stream is watched: a failure in any of them ends the stream with a logged reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agentserving.v1 import call_service_pb2, engine_service_pb2, program_service_pb2
from agentserving_controlplane.api import admissions, engine_conversion, streams
from agentserving_controlplane.api import call as call_api
from agentserving_controlplane.engine_sessions import EngineSession
from grpc import StatusCode
from structlog.testing import capture_logs
from support.served_plane import PlayedEngine, ServedPlane, refusal, until_end


@pytest.fixture
async def served() -> AsyncIterator[ServedPlane]:
    async with ServedPlane() as plane:
        yield plane


def fail(*_: object, **__: object) -> Any:
    raise RuntimeError("injected")


async def fail_later(*_: object) -> None:
    raise RuntimeError("injected")


async def stir(engine: PlayedEngine) -> None:
    """Gives every task of the stream something to do."""
    await engine.say(report=engine_service_pb2.Report(seq=1))


@pytest.mark.parametrize("task", ["reader", "writer", "acknowledger"])
async def test_a_failing_task_ends_an_engines_stream_and_the_engine_attaches_again(
    served: ServedPlane, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    engine = await served.attach("e1")
    with capture_logs() as logs, monkeypatch.context() as broken:
        match task:
            case "reader":
                broken.setattr(EngineSession, "report", fail_later)
            case "writer":
                broken.setattr(engine_conversion, "to_engine", fail)
            case "acknowledger":
                broken.setattr(served.plane.commits, "durable", fail_later)
        await stir(engine)
        ended = await refusal(until_end(engine.stream))
    assert (ended.code, ended.reason) == (StatusCode.INTERNAL, "INTERNAL")
    assert "injected" not in ended.message
    assert [entry for entry in logs if entry["log_level"] == "error"], "the reason is logged"
    assert not served.plane.engines.engines["e1"].attached  # type: ignore[index]
    engine = await served.attach("e1")
    await stir(engine)
    assert (await engine.hear("ack")).ack.seq == 1


@pytest.mark.parametrize("task", ["answers", "engines"])
async def test_a_failing_task_ends_a_gateways_stream_and_the_next_one_works(
    served: ServedPlane, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    with capture_logs() as logs, monkeypatch.context() as broken:
        stream = served.calls.Admissions()
        await stream.read()
        if task == "engines":
            broken.setattr(call_api, "engine_to_message", fail)
        else:
            broken.setattr(admissions.Admissions, "_answer", fail)
        await served.attach("e1")
        await stream.write(call_service_pb2.AdmissionsRequest(stream_id=1))
        ended = await refusal(until_end(stream))
    assert (ended.code, ended.reason) == (StatusCode.INTERNAL, "INTERNAL")
    assert [entry for entry in logs if entry["log_level"] == "error"]
    stream = served.calls.Admissions()
    admit = call_service_pb2.AdmitCallRequest(implicit=True)
    await stream.write(call_service_pb2.AdmissionsRequest(stream_id=1, admit=admit))
    while not (response := await stream.read()).HasField("admitted"):
        pass
    assert response.admitted.engine_id == "e1"
    stream.cancel()


async def test_a_failing_watch_ends_with_a_status_and_is_logged(
    served: ServedPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    with capture_logs() as logs:
        stream = served.calls.WatchEndings(call_service_pb2.WatchEndingsRequest())
        monkeypatch.setattr(served.plane.endings, "after", fail)
        ended = await refusal(until_end(stream))
    assert (ended.code, ended.reason) == (StatusCode.INTERNAL, "INTERNAL")
    assert [entry for entry in logs if entry["log_level"] == "error"]


async def test_the_first_task_that_ends_cancels_the_others_and_its_error_is_raised() -> None:
    cancelled = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(RuntimeError, match="injected"):
        await streams.until_first_end(one=waits(), other=fail_later())
    assert cancelled.is_set()
    await streams.until_first_end(one=waits(), other=asyncio.sleep(0))


async def test_a_watcher_that_hangs_up_is_no_longer_listened_for(served: ServedPlane) -> None:
    watches = [
        served.calls.WatchEndings(call_service_pb2.WatchEndingsRequest()),
        served.programs.WatchPrograms(program_service_pb2.WatchProgramsRequest()),
        served.calls.Admissions(),
    ]
    await watches[0].read()
    async with asyncio.timeout(20):
        while len(served.plane.listeners) < len(watches):
            await asyncio.sleep(0.01)
        for stream in watches:
            stream.cancel()
        while served.plane.listeners:
            await asyncio.sleep(0.01)
