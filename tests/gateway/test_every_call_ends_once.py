"""Whatever happens between a client's request and the engine's report, an admitted call ends, and ends once.

Clients hang up at any moment, engines fail in every way that a client of HTTP can see, and the control plane answers
late or not at all. Afterwards the table and the engines hold no call, and outcomes say what happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from agentserving.v1 import call_service_pb2 as pb
from agentserving.v1 import call_service_pb2_grpc as rpc
from agentserving.v1 import types_pb2
from agentserving_controlplane import call_ends
from agentserving_gateway import admission as admission_module
from gateway.gateway_rig import Engine, Rig, Script, answer_json, rig, until, value
from support.eventually import DEADLINE_S

# The promise is 2 s; this machine may be busy, and the fault that the bound detects lasts 120 s.
WITHIN_S = 20.0
PROGRAM = "x-agentserving-program-id: p\r\n"


def refuses(status: int) -> Script:
    async def script(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 %d No\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
        writer.write(head % status + b"{}")
        await writer.drain()

    return script


async def hangs_up(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    return


async def never_answers(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if not await reader.read(1):
        raise ConnectionResetError


async def begins_and_waits(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
    await never_answers(request, reader, writer)


async def breaks_off(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}")
    await writer.drain()


@asynccontextmanager
async def outcomes(made: Rig, count: int) -> AsyncIterator[Counter[str]]:
    """Fills, at the end of the block, with how the next `count` calls have ended."""
    found: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(made.control_plane) as channel:
        stream = rpc.CallServiceStub(channel).WatchEndings(pb.WatchEndingsRequest())
        await stream.read()
        yield found
        async with asyncio.timeout(DEADLINE_S):
            while found.total() < count:
                news = await stream.read()
                found.update(
                    types_pb2.Outcome.Name(each.call.outcome) for each in news.endings if each.HasField("call")
                )
        stream.cancel()


async def leave(port: int, after_s: float, *, stream: bool = False, headers: str = PROGRAM) -> None:
    """A request whose client hangs up."""
    body = b'{"model":"m","stream":%s}' % (b"true" if stream else b"false")
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    writer.write(head.encode() + body)
    await asyncio.sleep(after_s)
    writer.transport.abort()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [never_answers, begins_and_waits])
async def test_hang_ups_at_any_moment_leave_no_call(script: Script, stream: bool) -> None:
    async with rig(script, script) as made:
        await asyncio.gather(*(leave(made.port, index / 500, stream=stream) for index in range(60)))
        await made.until_idle(WITHIN_S)


@pytest.mark.parametrize(
    ("script", "status", "outcome"),
    [
        (refuses(400), 400, "REJECTED"),
        (refuses(404), 404, "REJECTED"),
        (refuses(429), 429, "REJECTED"),
        (refuses(500), 500, "FAILED"),
        (refuses(503), 503, "FAILED"),
        (hangs_up, 502, "FAILED"),
        (breaks_off, 200, "FAILED"),
    ],
)
async def test_a_call_that_its_engine_does_not_serve_ends_with_what_happened(
    script: Script, status: int, outcome: str
) -> None:
    async with rig(script) as made:
        async with outcomes(made, 1) as ended:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                assert int((await made.post(headers=PROGRAM)).split(b" ")[1]) == status
        assert ended == {f"OUTCOME_{outcome}": 1}
        await made.until_idle(WITHIN_S)


async def test_an_answer_of_an_engine_whose_scheduler_never_saw_the_request_ends_its_call() -> None:
    async with rig(answer_json) as made:
        async with outcomes(made, 20) as ended:
            await asyncio.gather(*(made.post(headers=PROGRAM) for _ in range(10)))
            await asyncio.gather(*(made.post() for _ in range(10)))
        assert ended == {"OUTCOME_COMPLETED": 20}
        await made.until_idle(WITHIN_S)


async def test_ends_of_answered_calls_are_sent_to_the_next_leader() -> None:
    async with rig(answer_json) as made:
        await asyncio.gather(*(made.post(headers=PROGRAM) for _ in range(5)))
        made.link.stall()
        made.link.cut()
        await until(lambda: made.admission._leader._ends != {})
        made.link.flow()
        await made.until_idle(WITHIN_S)


async def test_a_call_that_goes_on_after_its_answer_ends_with_its_engines_report() -> None:
    """A background response of the Responses API is answered at once and computed later."""
    async with rig(answer_json) as made:
        (engine,) = made.engines
        await made.post(headers=PROGRAM)
        await engine.report(engine.requests[0], service_us=10, running=True)
        (key,) = made.plane.table.rows
        await until(lambda: any(call.exchange for call in made.plane.table.rows[key].calls.values()))
        await asyncio.sleep(call_ends.EXCHANGE_OVER_S + 0.5)
        assert made.in_flight == 1
        async with outcomes(made, 1) as ended:
            await engine.report(engine.requests[0], service_us=1000, outcome=types_pb2.OUTCOME_FAILED)
        assert ended == {"OUTCOME_FAILED": 1}
        await made.until_idle(WITHIN_S)


async def test_an_unreachable_engine_leaves_no_call() -> None:
    async with rig(answer_json) as made:
        server = made.engines[0].server
        assert server is not None
        server.close()
        answer = await made.post(headers=PROGRAM)
        assert answer.startswith(b"HTTP/1.1 503")
        assert value(answer, "retry-after") == "1"
        await made.until_idle(WITHIN_S)


async def test_an_admission_that_comes_too_late_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "ADMIT_DEADLINE_S", 0.2)
    async with rig(answer_json) as made:
        made.link.stall()
        answers = await asyncio.gather(*(made.post(headers=PROGRAM) for _ in range(20)))
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers), "served without the control plane"
        made.link.flow()
        await until(lambda: made.plane.table.rows != {})
        await made.until_idle(WITHIN_S)


async def test_a_client_that_leaves_while_the_control_plane_is_silent_leaves_no_call() -> None:
    async with rig(answer_json) as made:
        made.link.stall()
        await asyncio.gather(*(leave(made.port, 0.05) for _ in range(20)))
        made.link.flow()
        await until(lambda: made.plane.table.rows != {})
        await made.until_idle(WITHIN_S)
        assert made.engines[0].requests == []


async def test_ends_that_could_not_be_sent_are_sent_to_the_next_leader() -> None:
    async with rig(never_answers) as made:
        waiting = [asyncio.create_task(leave(made.port, 1.0, headers="")) for _ in range(5)]
        await until(lambda: len(made.engines[0].requests) == 5)
        made.link.stall()
        made.link.cut()
        await asyncio.gather(*waiting)
        made.link.flow()
        await until(lambda: made.admission.connected)
        await made.until_idle(WITHIN_S)


async def test_the_first_attempts_of_anonymous_programs_are_ended_too() -> None:
    async with rig(hangs_up, answer_json) as made:
        for _ in range(4):
            answer = await made.post()
            assert answer.startswith(b"HTTP/1.1 200")
            await made.engines[1].report(made.engines[1].requests[-1], outcome=types_pb2.OUTCOME_COMPLETED)
        await made.until_idle(WITHIN_S)


@pytest.mark.parametrize(
    "headers", [PROGRAM, "x-dynamo-session-id: d\r\n", "x-dynamo-session-id: d\r\nx-dynamo-session-final: true\r\n", ""]
)
async def test_a_retry_belongs_to_the_program_of_the_first_attempt(headers: str) -> None:
    async with rig(hangs_up, answer_json) as made:
        broken, well = made.engines
        while not broken.requests:
            well.requests.clear()
            answer = await made.post(headers=headers)
            assert answer.startswith(b"HTTP/1.1 200")
            await well.report(well.requests[-1], outcome=types_pb2.OUTCOME_COMPLETED)
        first, second = (value(each.requests[-1], "x-request-id") for each in (broken, well))
        assert first == second != "", "one call, which two engines have seen"
        await made.until_idle(WITHIN_S)


class Busy:
    """An engine with a scheduler: serves, fails or dies at random, and reports what its scheduler saw."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.engine: Engine | None = None

    async def __call__(self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self.engine is not None
        dice = self.dice
        kind = dice.choice(["serve", "serve", "serve", "slow", "400", "500", "503", "reset", "half", "unseen"])
        await asyncio.sleep(dice.random() * 0.02)
        if kind in ("400", "500", "503"):
            await refuses(int(kind))(request, reader, writer)
            return
        if kind == "reset":
            return
        seen = kind != "unseen"
        outcome = types_pb2.OUTCOME_CANCELLED
        try:
            if seen and dice.random() < 0.5:
                await self.engine.report(request, service_us=10, running=True)
            if kind in ("slow", "unseen"):
                async with asyncio.timeout(dice.random() * 0.3):
                    with contextlib.suppress(ConnectionError):
                        await reader.read(1)
                return
            if kind == "half":
                await breaks_off(request, reader, writer)
                outcome = types_pb2.OUTCOME_FAILED
                return
            await answer_json(request, reader, writer)
            outcome = types_pb2.OUTCOME_COMPLETED
        except TimeoutError:
            return
        finally:
            if seen:
                await self.engine.report(request, service_us=1000, outcome=outcome)


@pytest.mark.parametrize("seed", range(3))
async def test_after_any_load_no_call_is_left(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "ADMIT_DEADLINE_S", 0.2)
    dice = random.Random(seed)
    scripts = [Busy(seed * 10 + index) for index in range(3)]
    async with rig(*scripts) as made:
        for script, engine in zip(scripts, made.engines, strict=True):
            script.engine = engine

        async def client(index: int) -> None:
            await asyncio.sleep(dice.random())
            headers = dice.choice(["", PROGRAM, f"x-dynamo-session-id: s{index % 7}\r\n", "x-dynamo-session-id: f\r\n"
                                   "x-dynamo-session-final: true\r\n"])  # fmt: skip
            if dice.random() < 0.5:
                await leave(made.port, dice.random() * 0.1, stream=dice.random() < 0.5, headers=headers)
            else:
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    await made.post(headers=headers)

        async def disturb() -> None:
            for pause_s in (0.1, 0.4, 0.1):
                await asyncio.sleep(0.2)
                made.link.stall()
                await asyncio.sleep(pause_s)
                made.link.flow()

        await asyncio.gather(disturb(), *(client(index) for index in range(150)))
        await made.until_idle(WITHIN_S)
