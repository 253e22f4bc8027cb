"""Calls are served while the picker is gone, stopped or new, and while no control plane leads."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agentserving_controlplane.table.states import Outcome
from agentserving_gateway.envoy import FrontSettings
from agentserving_gateway.envoy_admin import EnvoyAdmin
from gateway.gateway_rig import Rig, answer_json, rig, start_envoy, until, value
from gateway.played_keys import PlayedKeys
from gateway.test_every_call_ends_once import refuses

PROGRAM = "x-agentserving-program-id: p\r\n"


@dataclass
class Front:
    """An Envoy with a picker in a process of its own; engines and control plane are the rig's."""

    made: Rig
    run_dir: Path
    # Of a client, where clients have keys.
    key: str = ""
    picker: asyncio.subprocess.Process | None = None
    envoy: asyncio.subprocess.Process | None = None

    async def start_picker(self) -> None:
        arguments = ["--run-dir", str(self.run_dir), "--control-plane", self.made.control_plane]
        arguments += ["--client-auth", "keys"] if self.key else []
        with (self.run_dir / "picker.log").open("a") as log:
            self.picker = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "agentserving_gateway", *arguments, stdout=log, stderr=log
            )

    async def start_envoy(self) -> None:
        settings = FrontSettings(listen="127.0.0.1:0", run_dir=self.run_dir, client_keys=bool(self.key))
        self.envoy = await start_envoy(settings)
        async with EnvoyAdmin(self.run_dir / "admin.sock") as admin, asyncio.timeout(30):
            while await admin.ask("GET", "/ready") is None or not (text := await admin.ask("GET", "/listeners")):
                await asyncio.sleep(0.02)
        self.made.port = int(text.rpartition(":")[2])

    @property
    def headers(self) -> str:
        """Of a call of the program `p`."""
        return PROGRAM + (f"authorization: Bearer {self.key}\r\n" if self.key else "")

    async def call(self, headers: str = PROGRAM) -> tuple[bytes, str]:
        """(answer, ticket that its engine got)."""
        for engine in self.made.engines:
            engine.requests.clear()
        answer = await self.made.post(headers=headers)
        (request,) = [request for engine in self.made.engines for request in engine.requests]
        return answer, value(request, "x-session-id")

    async def until_managed(self) -> None:
        async with asyncio.timeout(30):
            while not await self._is_managed():
                await asyncio.sleep(0.05)

    async def _is_managed(self) -> bool:
        """An engine gets a call with a ticket. A front that has just started may have no engine in force yet."""
        for engine in self.made.engines:
            engine.requests.clear()
        await self.made.post(headers=self.headers)
        return any(value(request, "x-session-id") for engine in self.made.engines for request in engine.requests)


@asynccontextmanager
async def front(tmp_path: Path, engines: int = 3, keys: PlayedKeys | None = None) -> AsyncIterator[Front]:
    """`keys`: clients have keys, and the front one of them."""
    async with rig(*[answer_json] * engines, keys=keys) as made:
        found = Front(made, tmp_path, keys.make("a") if keys is not None else "")
        await found.start_picker()
        await until(lambda: (tmp_path / "picker.sock").exists(), 30)
        await found.start_envoy()
        try:
            await found.until_managed()
            yield found
        finally:
            for process in (found.envoy, found.picker):
                if process is not None and process.returncode is None:
                    process.kill()
                    await process.wait()


async def test_calls_are_served_without_a_ticket_while_the_picker_is_gone_and_managed_when_it_is_back(
    tmp_path: Path,
) -> None:
    async with front(tmp_path) as found:
        assert found.picker is not None
        found.picker.kill()
        await found.picker.wait()
        homes = {}
        # Enough that it cannot be chance when one of three engines has none of them.
        for program in range(40):
            header = f"x-agentserving-program-id: p{program}\r\n"
            answers = [await found.call(header) for _ in range(3)]
            assert all(answer.startswith(b"HTTP/1.1 200") and not ticket for answer, ticket in answers)
            (homes[program],) = {value(answer, "x-agentserving-engine") for answer, _ in answers}
        assert len(set(homes.values())) == 3, "programs are spread, and stay where they are"
        for forged in ("x-session-id: forged\r\n", "x-gateway-destination-endpoint: 127.0.0.1:1\r\n"):
            answer, ticket = await found.call(forged)
            assert answer.startswith(b"HTTP/1.1 200")
            assert not ticket
        await found.start_picker()
        await found.until_managed()


async def test_a_server_error_is_tried_elsewhere_while_the_picker_is_gone(tmp_path: Path) -> None:
    async with front(tmp_path, engines=2) as found:
        assert found.picker is not None
        found.picker.kill()
        await found.picker.wait()
        for broken in (0, 1):
            found.made.play(*(refuses(503) if each == broken else answer_json for each in range(2)))
            answers = [
                await found.made.post(headers=f"x-agentserving-program-id: p{program}\r\n") for program in range(12)
            ]
            assert {answer.split(b" ")[1] for answer in answers} == {b"200"}
            assert all(engine.requests for engine in found.made.engines)


async def test_a_front_is_not_ready_while_its_envoy_does_not_ask_the_picker(tmp_path: Path) -> None:
    async with EnvoyAdmin(tmp_path / "admin.sock") as admin:
        alone = await start_envoy(FrontSettings(listen="127.0.0.1:0", run_dir=tmp_path))
        try:
            async with asyncio.timeout(30):
                while await admin.ask("GET", "/ready") is None:
                    await asyncio.sleep(0.02)
            assert not await admin.is_ready()
        finally:
            alone.kill()
            await alone.wait()


async def test_calls_wait_two_seconds_at_most_for_a_picker_that_is_stopped(tmp_path: Path) -> None:
    async with front(tmp_path) as found:
        assert found.picker is not None
        found.picker.send_signal(signal.SIGSTOP)
        waits = []
        try:
            for _ in range(5):
                began = time.monotonic()
                answer, ticket = await found.call()
                waits.append(time.monotonic() - began)
                assert answer.startswith(b"HTTP/1.1 200")
                assert not ticket
        finally:
            found.picker.send_signal(signal.SIGCONT)
        # The first waits until the health check has failed twice; the bound leaves room for a busy machine.
        assert max(waits) < 5.0, waits
        assert sorted(waits)[2] < 0.5, waits
        await found.until_managed()


async def test_a_picker_that_is_stopped_in_the_middle_of_a_call_does_not_hold_it(tmp_path: Path) -> None:
    async with front(tmp_path) as found:
        assert found.picker is not None
        found.picker.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(6):
                answers = await asyncio.gather(*(found.made.post(headers=PROGRAM) for _ in range(20)))
            assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        finally:
            found.picker.send_signal(signal.SIGCONT)


async def test_calls_in_progress_go_on_when_their_picker_has_hung(tmp_path: Path) -> None:
    """Envoy then closes its connections to the picker, as it does when a client leaves."""
    async with front(tmp_path, engines=1) as found, EnvoyAdmin(tmp_path / "admin.sock") as admin:
        made, go_on = found.made, asyncio.Event()
        (engine,) = made.engines

        async def slow(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await engine.report(request, service_us=10, running=True)
            await go_on.wait()
            await answer_json(request, reader, writer)

        made.play(slow)
        waiting = [asyncio.create_task(made.post(headers=PROGRAM)) for _ in range(5)]
        await until(lambda: len(engine.requests) == 5)
        assert found.picker is not None
        found.picker.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(30):
                while await admin.is_ready():
                    await asyncio.sleep(0.05)
        finally:
            found.picker.send_signal(signal.SIGCONT)
        async with asyncio.timeout(30):
            while not await admin.is_ready():
                await asyncio.sleep(0.05)
        engine.script = answer_json
        await found.until_managed()
        exchanges = [call.exchange for row in made.plane.table.rows.values() for call in row.calls.values()]
        go_on.set()
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in await asyncio.gather(*waiting))
        assert len(exchanges) >= 5, "the calls are in the table"
        assert not any(outcome is Outcome.CANCELLED for outcome in exchanges)


async def test_a_call_waits_for_the_next_leader_and_is_managed() -> None:
    async with rig(answer_json) as made:
        made.link.stall()
        made.link.cut()
        await until(lambda: not made.admission.connected)
        waiting = asyncio.create_task(made.post(headers=PROGRAM))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        made.link.flow()
        assert (await waiting).startswith(b"HTTP/1.1 200")
        assert value(made.engines[0].requests[0], "x-session-id")


async def test_a_front_that_starts_without_picker_and_control_plane_serves_on_the_last_known_engines(
    tmp_path: Path,
) -> None:
    async with front(tmp_path, engines=1) as found:
        assert found.picker is not None
        assert found.envoy is not None
        for process in (found.picker, found.envoy):
            process.kill()
            await process.wait()
        await found.start_envoy()
        answer, ticket = await found.call()
        assert answer.startswith(b"HTTP/1.1 200")
        assert not ticket


async def test_engines_come_and_go_without_a_dropped_call() -> None:
    """An engine that has just attached is named at once: it is in force before a call is sent there."""
    async with rig(*[answer_json] * 3) as made:
        stop = asyncio.Event()
        statuses: list[bytes] = []

        async def load(index: int) -> None:
            while not stop.is_set():
                answer = await made.post(headers=f"x-agentserving-program-id: l{index}\r\n")
                statuses.append(answer.split(b" ")[1])

        loads = [asyncio.create_task(load(index)) for index in range(4)]
        for size in (1, 3, 2, 3, 1, 3):
            keep = made.admission.known_engines[:size]
            made.picker.admission._file.save(keep)
            before = len(statuses)
            await until(lambda before=before: len(statuses) > before + 20)  # type: ignore[misc]
        stop.set()
        await asyncio.gather(*loads)
        assert set(statuses) == {b"200"}
