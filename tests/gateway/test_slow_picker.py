"""With keys nothing is served without the picker, so calls wait for one that is slow or that restarts."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from agentserving.v1 import types_pb2
from agentserving_gateway.envoy_admin import EnvoyAdmin
from gateway.gateway_rig import Engine, Script, answer_json, value
from gateway.played_keys import PlayedKeys
from gateway.test_picker_away import Front, front
from support.eventually import DEADLINE_S

# Between two calls of the load.
EVERY_S = 0.02
# Envoy's counter of questions to the picker.
ASKED = "cluster.picker.upstream_rq_total"


async def calls_within(found: Front, time_s: float) -> list[asyncio.Task[bytes]]:
    """Calls that begin within this time."""
    calls, ends = [], time.monotonic() + time_s
    while time.monotonic() < ends:
        calls.append(asyncio.create_task(found.made.post(headers=found.headers)))
        await asyncio.sleep(EVERY_S)
    return calls


async def assert_served(found: Front, calls: Sequence[asyncio.Task[bytes]]) -> None:
    """Each of the calls is answered, by an engine that got it with a ticket of its own, and ends in the table."""
    answers = await asyncio.gather(*calls)
    failed = [answer for answer in answers if not answer.startswith(b"HTTP/1.1 200")]
    assert not failed, f"{len(failed)} of {len(calls)} failed: {failed[0].decode()}"
    requests = [request for engine in found.made.engines for request in engine.requests]
    tickets = {value(request, "x-session-id") for request in requests}
    assert len(requests) == len(calls) == len(tickets)
    assert "" not in tickets
    await found.made.until_idle()


async def begin(found: Front) -> None:
    """No call is open, the engines have got none so far, and report those that come."""
    await found.made.until_idle()

    def reporting(engine: Engine) -> Script:
        async def script(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await engine.report(request, outcome=types_pb2.OUTCOME_COMPLETED)
            await answer_json(request, reader, writer)

        return script

    found.made.play(*(reporting(engine) for engine in found.made.engines))


@pytest.mark.parametrize("pause_s", [0.5, 1.0, 2.0, 4.0])
async def test_a_slow_picker_fails_no_call(tmp_path: Path, pause_s: float) -> None:
    async with front(tmp_path, keys=PlayedKeys()) as found:
        assert found.picker is not None
        await begin(found)
        found.picker.send_signal(signal.SIGSTOP)
        try:
            calls = await calls_within(found, pause_s)
        finally:
            found.picker.send_signal(signal.SIGCONT)
        await assert_served(found, calls)


async def test_calls_wait_for_a_picker_that_was_killed(tmp_path: Path) -> None:
    """Those that it had been asked about, and those that come before it is back."""
    async with front(tmp_path, keys=PlayedKeys()) as found:
        assert found.picker is not None
        await begin(found)
        found.picker.send_signal(signal.SIGSTOP)
        calls = await calls_within(found, 0.5)
        found.picker.kill()
        await found.picker.wait()
        calls += await calls_within(found, 0.5)
        await found.start_picker()
        await assert_served(found, calls)


async def test_a_call_that_is_held_for_a_leader_survives_the_restart_of_its_picker(tmp_path: Path) -> None:
    """Its question with the body is asked again, with the whole body."""
    async with front(tmp_path, keys=PlayedKeys()) as found, EnvoyAdmin(tmp_path / "admin.sock") as admin:
        assert found.picker is not None
        await begin(found)
        await found.made.grpc_server.stop(None)

        async def asked() -> int:
            text = await admin.ask("GET", f"/stats?filter=^{ASKED}$")
            return int((text or "0").rpartition(":")[2])

        before, body = await asked(), b'{"prompt": "%s"}' % (b"x" * (1 << 20))
        calls = [asyncio.create_task(found.made.post(headers=found.headers, body=body)) for _ in range(4)]
        async with asyncio.timeout(DEADLINE_S):
            while await asked() < before + 2 * len(calls):
                await asyncio.sleep(0.02)
        found.picker.kill()
        await found.picker.wait()
        await found.start_picker()
        answers = await asyncio.gather(*calls)
        assert [answer.split(b" ")[1] for answer in answers] == [b"200"] * len(calls)
        requests = [request for engine in found.made.engines for request in engine.requests]
        assert [request.partition(b"\r\n\r\n")[2] for request in requests] == [body] * len(calls)


async def test_a_picker_that_stays_away_is_waited_for_within_bounds(tmp_path: Path) -> None:
    async with front(tmp_path, keys=PlayedKeys()) as found:
        assert found.picker is not None
        found.picker.kill()
        await found.picker.wait()
        answer = await found.made.post(headers=found.headers)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"cannot verify API keys" in answer
        assert value(answer, "retry-after") == "1"
        listed = await found.made.send(f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{found.headers}\r\n".encode())
        assert listed.startswith(b"HTTP/1.1 503")


async def test_the_list_of_models_waits_for_a_picker_that_restarts(tmp_path: Path) -> None:
    async with front(tmp_path, keys=PlayedKeys()) as found:
        assert found.picker is not None
        found.picker.kill()
        await found.picker.wait()
        request = f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{found.headers}\r\n".encode()
        listing = asyncio.create_task(found.made.send(request))
        await found.start_picker()
        assert (await listing).startswith(b"HTTP/1.1 200")
