"""Control planes on a real etcd, and scripted engines with real sidecars; a test may kill each process."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import grpc
from agentserving.contract.signatures import public_bytes
from agentserving.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    call_service_pb2_grpc,
    program_service_pb2,
    program_service_pb2_grpc,
    types_pb2,
)
from agentserving_cli.local.ports import free_ports
from support.certificate_files import CertificateFiles
from support.component import Component
from support.etcd_server import EtcdServer
from support.eventually import DEADLINE_S, eventually_async
from support.scripted_engine import ScriptedEngine

KEY = b"0123456789abcdef"
ALL_STATES = [state for state in types_pb2.ProgramState.values() if state]


async def until(condition: Callable[[], Any], bound_s: float = DEADLINE_S, what: str = "") -> None:
    """Waits for a condition that may block (most ask a process by HTTP): it is evaluated in a thread."""

    async def evaluated() -> Any:
        return await asyncio.to_thread(condition)

    await eventually_async(evaluated, what or condition.__qualname__, bound_s)


class KillableCluster:
    """`async with` starts all processes and ends them. `flags` are flags of the control planes."""

    def __init__(self, engines: int = 2, planes: int = 1, *, tls: bool = False, **flags: object) -> None:
        # Not below tmp_path: paths of Unix sockets are limited to about 100 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="agentserving-faults-"))
        self.certificates = CertificateFiles(self.directory / "tls") if tls else None
        self.client_flags: dict[str, object] = {}
        self.sidecar_flags: dict[str, object] = {}
        self.etcd = EtcdServer()
        if self.certificates is not None:
            self.client_flags = self.certificates.client_flags()
            self.sidecar_flags = self.certificates.client_flags("engine")
            self.etcd = EtcdServer(*self.certificates.etcd_flags(), ready=self.certificates.etcd_ready)
            flags |= {**self.certificates.flags("control-plane"), **self.certificates.flags("client", "etcd_tls")}
        listens = [f"127.0.0.1:{port}" for port in free_ports(planes)]
        self.listen, self.addresses = listens[0], ",".join(listens)
        (self.directory / "key").write_bytes(KEY)
        (self.directory / "public").write_bytes(public_bytes(KEY))
        self.planes = {listen: self.another_control_plane(**{"listen": listen, **flags}) for listen in listens}
        self.control_plane = self.planes[self.listen]
        self._count = engines
        self.engines: dict[str, ScriptedEngine] = {}
        self.sidecars: dict[str, Component] = {}
        self.channel: grpc.aio.Channel | None = None

    def another_control_plane(self, **flags: object) -> Component:
        """A control plane on the same store, not started."""
        given = {
            "listen": self.listen, "store": "etcd", "etcd_endpoints": self.etcd.endpoint,
            "ticket_key_file": self.directory / "key", "policy": "plas", "streams_listen": "127.0.0.1:0", **flags,
        }  # fmt: skip
        return Component("agentserving_controlplane", self.directory, **given)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise
        return self

    async def _start(self) -> None:
        await asyncio.to_thread(self.etcd.start)
        for plane in self.planes.values():
            plane.start()
        for number in range(self._count):
            await self._engine(f"e{number}")
        for component in (*self.planes.values(), *self.sidecars.values()):
            await asyncio.to_thread(component.wait_ready)
        self.channel = self.dial(self.listen)
        self.programs = program_service_pb2_grpc.ProgramServiceStub(self.channel)
        self.calls = call_service_pb2_grpc.CallServiceStub(self.channel)
        self.admin = admin_service_pb2_grpc.AdminServiceStub(self.channel)
        await self.attached()

    def dial(self, listen: str) -> grpc.aio.Channel:
        """A channel to a control plane that reconnects quickly."""
        if self.certificates is not None:
            return self.certificates.channel(listen)
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        return grpc.aio.insecure_channel(listen, options=options)

    async def _engine(self, engine_id: str) -> None:
        home = self.directory / engine_id
        home.mkdir()
        engine = self.engines[engine_id] = await ScriptedEngine(engine_id, KEY, home).start()
        (port,) = free_ports(1)
        self.sidecars[engine_id] = Component(
            "agentserving_sidecar", self.directory, engine_id=engine_id, engine_address=engine.address,
            channel_dir=home, state_dir=home / "state", control_plane=self.addresses, listen=f"127.0.0.1:{port}",
            **self.sidecar_flags,
        ).start()  # fmt: skip

    async def leader(self, bound_s: float = DEADLINE_S, but: str = "") -> str:
        """Address of the leading control plane, once there is one other than `but`."""
        others = {listen: plane for listen, plane in self.planes.items() if listen != but}

        def find() -> str:
            return next((at for at, plane in others.items() if plane.metric("agentserving_leader") == 1), "")

        async def found() -> str:
            return await asyncio.to_thread(find)

        return await eventually_async(found, "a control plane leads", bound_s)

    async def follows(self, listen: str, bound_s: float = DEADLINE_S) -> None:
        """Waits until this control plane follows another one."""
        plane = self.planes[listen]
        await until(
            lambda: plane.get("/readyz")[1].endswith(" leads\n") and not plane.metric("agentserving_leader"), bound_s
        )

    async def restart_control_plane(self) -> None:
        """SIGKILL; returns when a new process answers."""
        await asyncio.to_thread(self.control_plane.kill)
        self.control_plane.start()
        await asyncio.to_thread(self.control_plane.wait_ready)
        await eventually_async(self._answers, "the control plane answers")

    async def _answers(self) -> bool:
        try:
            await self.admin.GetPolicy(admin_service_pb2.GetPolicyRequest(), timeout=5)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def attached(self) -> None:
        """Waits until every sidecar is attached to the control plane."""
        await until(lambda: all(s.metric("agentserving_sidecar_attached") for s in self.sidecars.values()))

    async def acknowledged(self, bound_s: float = DEADLINE_S) -> None:
        """Waits until every report of every engine is durable."""
        books = [engine.book for engine in self.engines.values()]
        await until(lambda: not any(len(book.outbox) for book in books), bound_s)
        await until(
            lambda: all(s.metric("agentserving_sidecar_unacked_reports") == 0 for s in self.sidecars.values()), bound_s
        )

    async def table(self, listen: str = "") -> dict[str, types_pb2.Program]:
        """All rows of the process table, by program id."""
        async with self.dial(listen or self.listen) as channel:
            programs = program_service_pb2_grpc.ProgramServiceStub(channel)
            return await self._table(programs)

    async def _table(self, programs: program_service_pb2_grpc.ProgramServiceStub) -> dict[str, types_pb2.Program]:
        found: dict[str, types_pb2.Program] = {}
        token = ""
        while True:
            request = program_service_pb2.ListProgramsRequest(page_size=50, page_token=token, states=ALL_STATES)
            page = await programs.ListPrograms(request, wait_for_ready=True, timeout=30)
            found.update({program.program_id: program for program in page.programs})
            token = page.next_page_token
            if not token:
                return found

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _close(self) -> None:
        """Ends every process, however far the start came."""
        if self.channel is not None:
            await self.channel.close()
        for component in (*self.sidecars.values(), *self.planes.values()):
            await asyncio.to_thread(component.kill)
        for engine in self.engines.values():
            await engine.close()
        await asyncio.to_thread(self.etcd.close)
        shutil.rmtree(self.directory, ignore_errors=True)
