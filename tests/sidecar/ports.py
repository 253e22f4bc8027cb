"""A sidecar without sockets: what it sends to its engine and to the leader is written down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from agentserving.contract.channel import CallRecord, EngineHello, EngineReport, Load, ToEngine
from agentserving.contract.ids import EngineId
from agentserving_sidecar.health import FrontState
from agentserving_sidecar.journal import Journal
from agentserving_sidecar.sidecar import Sidecar
from agentserving_sidecar.values import Hello, Report, ToLeader


@dataclass
class Engine:
    """Stands for the channel to the plugin."""

    sent: list[ToEngine] = field(default_factory=list)
    reconnections: int = 0

    def send(self, message: ToEngine) -> bool:
        self.sent.append(message)
        return True

    def reconnect(self) -> None:
        self.reconnections += 1

    def of(self, kind: type) -> list[ToEngine]:
        return [message for message in self.sent if isinstance(message, kind)]


@dataclass
class Leader:
    """Stands for the stream to the leader."""

    sent: list[ToLeader] = field(default_factory=list)
    attached: bool = True

    def send(self, message: ToLeader) -> None:
        self.sent.append(message)

    @property
    def reports(self) -> list[Report]:
        return [message for message in self.sent if isinstance(message, Report)]

    @property
    def hellos(self) -> list[Hello]:
        return [message for message in self.sent if isinstance(message, Hello)]

    @property
    def recorded(self) -> list[tuple[int, str]]:
        """(seq, call id) of the journal's reports."""
        return [(report.seq, record.call_id) for report in self.reports if report.seq for _, record in report.calls]


@dataclass
class Rig:
    """A sidecar between the two."""

    sidecar: Sidecar
    engine: Engine
    leader: Leader


def hello(boot_id: str = "b1") -> EngineHello:
    return EngineHello(
        boot_id=boot_id, pid=1, engine_kind="SIMULATOR", engine_version="0", plugin_version="0", max_num_seqs=8,
        max_model_len=8192, block_size=16, num_blocks=1000, data_parallel_size=1, async_scheduling=False,
        policy_version=0,
    )  # fmt: skip


def record(name: str, outcome: str = "completed") -> CallRecord:
    return CallRecord(
        call_id=name, attempt=1, program_id="p", root_program_id="p", tenant="default", thread_id="",
        attained_service_us=0, service_us=5, outcome=outcome,
    )  # fmt: skip


def report(*calls: CallRecord, load: Load | None = None) -> EngineReport:
    return EngineReport(load or Load(), list(calls), 0)


def new_sidecar(journal: Journal) -> Rig:
    """Not running: its recorder must be started for records to be stored."""
    sidecar = Sidecar(
        engine_id=EngineId("e1"), engine_address="127.0.0.1:9", sidecar_address="127.0.0.1:9", journal=journal,
        step_limit_us=5_000_000,
    )  # fmt: skip
    engine, leader = Engine(), Leader()
    sidecar.link, sidecar.leader = engine, leader
    return Rig(sidecar, engine, leader)


@contextlib.asynccontextmanager
async def running_sidecar(directory: Path) -> AsyncIterator[Rig]:
    """With a journal, a running recorder, a connected engine, and a healthy front."""
    with contextlib.closing(Journal(directory)) as journal:
        rig = new_sidecar(journal)
        rig.sidecar.engine_hello(hello())
        rig.sidecar.front_answered(FrontState.HEALTHY, "")
        recorder = asyncio.create_task(rig.sidecar.recorder.run())
        try:
            yield rig
        finally:
            recorder.cancel()
            await asyncio.gather(recorder, return_exceptions=True)


async def until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    """Waits until the condition holds; TimeoutError after the limit."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)
