"""A killable cluster with simulated engines and a gateway, and agents that stream through it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from agentserving_cli.local.ports import free_ports
from support.component import Component
from support.front import Front
from support.killable_cluster import KillableCluster

CALL_ID = "x-agentserving-call-id"


class Simulator(Component):
    """The simulated engine: probes are answered on the port that serves calls."""

    def __init__(self, directory: Path, **flags: object) -> None:
        super().__init__("agentserving_simulator", directory, **flags)
        at = self._argv.index("--http-port")
        del self._argv[at : at + 2]
        self.http_port = int(str(flags["listen"]).rpartition(":")[2])


class StreamingCluster(KillableCluster):
    """A KillableCluster whose engines answer HTTP, with a gateway in front."""

    def __init__(self, *args: Any, **flags: Any) -> None:
        super().__init__(*args, **flags)
        self.simulators: dict[str, Simulator] = {}
        self.gateway: Front | None = None

    async def _engine(self, engine_id: str) -> None:
        home = self.directory / engine_id
        home.mkdir()
        engine, listen = (f"127.0.0.1:{port}" for port in free_ports(2))
        key = self.directory / "public"
        simulator = self.simulators[engine_id] = Simulator(
            self.directory, listen=engine, engine_id=engine_id, channel_dir=home, ticket_key_file=key, max_num_seqs=32
        )
        simulator.start()
        self.sidecars[engine_id] = Component(
            "agentserving_sidecar", self.directory, engine_id=engine_id, engine_address=engine,
            channel_dir=home, state_dir=home / "state", control_plane=self.addresses, listen=listen,
            **self.sidecar_flags,
        ).start()  # fmt: skip

    async def _start(self) -> None:
        self.gateway = Front(self.directory, control_plane=self.addresses, **self.client_flags).start()
        self.url = self.gateway.url
        await super()._start()
        await asyncio.to_thread(self.gateway.wait_ready)

    async def _close(self) -> None:
        for component in (self.gateway, *self.simulators.values()):
            if component is not None:
                await asyncio.to_thread(component.kill)
        await super()._close()


class Agents:
    """Programs that stream one answer after another and check that each is complete."""

    def __init__(self, url: str, name: str, programs: int, tokens: int) -> None:
        self._url, self._tokens = url, tokens
        self.programs = [f"{name}-{number}" for number in range(programs)]
        # Per program, counting only calls that a control plane admitted.
        self.calls: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.unmanaged = 0
        self.streams = 0
        self.broken: list[str] = []
        # (start, answer) of each admitted call, on the monotonic clock.
        self.admitted: list[tuple[float, float]] = []
        self._stopping = False

    async def run(self) -> None:
        """Runs all programs until `stop`."""
        async with httpx.AsyncClient(timeout=120, trust_env=False, limits=httpx.Limits(max_connections=None)) as client:
            await asyncio.gather(*(self._agent(client, program) for program in self.programs))

    def stop(self) -> None:
        """Lets the streams in flight finish and starts no more."""
        self._stopping = True

    async def _agent(self, client: httpx.AsyncClient, program: str) -> None:
        while not self._stopping:
            try:
                await self._call(client, program)
            except (httpx.HTTPError, AssertionError) as error:
                self.broken.append(f"{program}: {error!r}")
                await asyncio.sleep(0.1)

    async def _call(self, client: httpx.AsyncClient, program: str) -> None:
        body = {
            "model": "tiny", "messages": [{"role": "user", "content": "on with it"}], "max_tokens": self._tokens,
            "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True,
        }  # fmt: skip
        began = time.monotonic()
        headers = {"x-agentserving-program-id": program}
        async with client.stream("POST", f"{self._url}/chat/completions", json=body, headers=headers) as response:
            assert response.status_code == 200, await response.aread()
            managed = CALL_ID in response.headers
            if managed:
                self.admitted.append((began, time.monotonic()))
            events = [line.removeprefix("data: ") async for line in response.aiter_lines() if line]
        self.streams += 1
        assert events[-1:] == ["[DONE]"], f"cut off after {len(events)} events"
        tokens = json.loads(events[-2])["usage"]["completion_tokens"]
        assert tokens == self._tokens
        if managed:
            self.calls[program] += 1
            self.tokens[program] += tokens
        else:
            self.unmanaged += 1
