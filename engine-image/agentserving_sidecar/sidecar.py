"""Between one engine and the control plane: reports go up, directives come down, and nothing is lost on the way.

A terminal record passes: plugin -> journal -> acknowledgement to the plugin and report to the leader -> acknowledgement
of the leader -> out of the journal. At every moment at least one of them has it, so each may crash at any time.
Progress reports have seq 0 and are never stored: the next one supersedes them.

`Sidecar` connects the parts: `engine_link` and `api.attach` (the two streams), `engine_state` and `health` (what is
known of the engine), `recording` (the journal), `directives`. Everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import msgspec
import structlog
from agentserving.contract.channel import AckCalls, CallRecord, EngineHello, EngineReport, Load, PolicyResult, ToEngine
from agentserving.contract.ids import EngineId

from agentserving_sidecar.directives import Directives
from agentserving_sidecar.engine_state import EngineState
from agentserving_sidecar.health import FrontState, Health
from agentserving_sidecar.journal import Entry, Journal
from agentserving_sidecar.recording import Recorder, Records
from agentserving_sidecar.rejected_tickets import RejectedTickets
from agentserving_sidecar.values import Ack, Directive, FromLeader, Hello, Report, ToLeader, Welcome

log = structlog.get_logger()

# How often the health is decided on without an event: a stopped engine causes none.
EVALUATE_S = 0.2
# A heartbeat of a serving engine that says nothing new is passed on this often, others without delay. Whether the
# sidecar is there the leader knows from the stream.
UNCHANGED_BEAT_S = 4.0
# Entries per report when the journal is replayed.
RESEND_BATCH = 500


class LeaderPort(Protocol):
    """The stream to the leader, as the sidecar uses it."""

    @property
    def attached(self) -> bool:
        """The leader has welcomed us on the current stream."""
        ...

    def send(self, message: ToLeader) -> None:
        """Sends, or drops the message while there is no stream: a new one begins with `greeting`."""
        ...


class EnginePort(Protocol):
    """The channel to the plugin, as the sidecar uses it."""

    def send(self, message: ToEngine) -> bool:
        """False while the plugin is not connected."""
        ...

    def reconnect(self) -> None:
        """Breaks the connection, so that the plugin sends again what is not acknowledged."""
        ...


def _now_us() -> int:
    return time.monotonic_ns() // 1000


class Sidecar:
    """Implements EngineEvents (engine_link) and LeaderEvents (api.attach)."""

    def __init__(
        self, *, engine_id: EngineId, engine_address: str, sidecar_address: str, journal: Journal, step_limit_us: int
    ) -> None:
        self.engine_id, self.engine_address, self.sidecar_address = engine_id, engine_address, sidecar_address
        self.journal = journal
        self.engine = EngineState(step_limit_us)
        self.recorder = Recorder(
            journal,
            on_recorded=self._recorded,
            on_deferred=self._deferred,
            on_overflow=lambda: self.link.reconnect() if self.link is not None else None,
        )
        self.directives = Directives(to_engine=self._to_engine, refuse_policy=self._to_leader, drain=self.drain)
        self.rejected_tickets = RejectedTickets()
        self.models: tuple[str, ...] = ()
        self.draining = False
        self.link: EnginePort | None = None
        self.leader: LeaderPort | None = None
        self.on_front_ready: Callable[[], None] = lambda: None
        self._is_leaving = False
        # Highest seq on the current stream to the leader.
        self._sent_seq = 0
        # Load and health as the leader has them, but for the time since the last step; and when they were sent.
        self._sent: tuple[Load | None, Health] | None = None
        self._sent_us = 0

    # -- from the engine -----------------------------------------------------------------------------------------

    def engine_hello(self, hello: EngineHello, pid: int = 0, rank: int = 0) -> None:
        """The plugin of a rank has connected, perhaps of a new engine process."""
        before = self.engine.boot_id
        if self.engine.connected(hello, pid, _now_us(), rank) and before:
            # The drain was of the process that has ended.
            self.draining = self._is_leaving
        self.directives.send_state()
        log.info(
            "engine connected", boot=hello.boot_id, kind=hello.engine_kind, version=hello.engine_version, rank=rank
        )
        self.engine.evaluate(_now_us())
        # The last records of the boot before go first: a leader that learns of its end gives up what it has not heard.
        self.recorder.after_attempt(lambda: self._announce(before))

    def _announce(self, boot_before: str) -> None:
        if boot_before not in ("", self.engine.boot_id):
            self._to_leader(Report(boot_id=boot_before, health=self.engine.health, engine_down=True))
        self._to_leader(self.hello())

    def engine_report(self, report: EngineReport, rank: int = 0) -> None:
        """Terminal records are recorded first; the others are passed on."""
        self.engine.heard(report.load, _now_us(), rank)
        load = self.engine.load or report.load
        self.rejected_tickets.count(load.rejected_tickets, time.monotonic())
        boot_id = self.engine.boot_of(rank)
        for record in report.calls:
            if record.outcome:
                self.recorder.take(boot_id, record)
        self._evaluate()
        progress = [(boot_id, record) for record in report.calls if not record.outcome]
        # The report of a recorded call says how busy the engine is, milliseconds later: one message, not two.
        if progress or (not report.calls and self._is_news()):
            self._report(*progress)

    def engine_policy(self, result: PolicyResult, rank: int = 0) -> None:
        """The leader counts who follows."""
        answer = self.engine.policy_answered(result, rank)
        if answer is not None:
            self._to_leader(answer)

    def engine_disconnected(self, rank: int = 0) -> None:
        """The plugin keeps its records, and sends them when it is connected again."""
        self.engine.disconnected(_now_us(), rank)
        self._evaluate()

    def engine_absent(self, rank: int = 0) -> None:
        """The engine process has ended, or has not come so far yet."""
        self.engine.absent(rank)
        self._evaluate()

    def front_answered(self, state: FrontState, detail: str) -> None:
        """The result of a health check of the HTTP front."""
        if self.engine.front_answered(state, detail):
            self.on_front_ready()
        self._evaluate()

    def models_changed(self, models: tuple[str, ...]) -> None:
        """The leader routes calls by the engine's models."""
        self.models = models
        self._to_leader(self.hello())

    # -- health --------------------------------------------------------------------------------------------------

    async def watch_health(self) -> None:
        """Decides on the health regularly, until cancelled."""
        while True:
            await asyncio.sleep(EVALUATE_S)
            self._evaluate()

    def _evaluate(self) -> None:
        """Reports a change of the health immediately."""
        if self.engine.evaluate(_now_us()):
            health = self.engine.health
            write = log.info if health.is_serving else log.warning
            write("engine health changed", health=health.state.value, reason=health.reason)
            self._report()

    # -- the journal ---------------------------------------------------------------------------------------------

    def _recorded(self, entries: list[Entry]) -> None:
        self._to_engine(AckCalls([(entry.record.call_id, entry.record.attempt) for entry in entries]))
        # Those that a new stream's replay has sent already are not sent again.
        for report in self._journal_reports([entry for entry in entries if entry.seq > self._sent_seq]):
            self._to_leader(report)

    def _deferred(self, records: Records) -> None:
        """They are not on disk yet; the leader may know of the ends all the same."""
        if records:
            self._report(*records)

    def _journal_reports(self, entries: list[Entry]) -> list[Report]:
        """In order and in batches, each of one boot."""
        reports: list[Report] = []
        batch: list[Entry] = []
        for entry in [*entries, None]:
            is_full = len(batch) == RESEND_BATCH or (batch and (entry is None or entry.boot_id != batch[0].boot_id))
            if is_full:
                reports.append(self._journal_report(batch))
                batch = []
            if entry is not None:
                batch.append(entry)
        self._sent_seq = max(self._sent_seq, *(report.seq for report in reports), 0)
        return reports

    def _journal_report(self, batch: list[Entry]) -> Report:
        self._note_sent()
        return Report(
            seq=batch[-1].seq,
            boot_id=batch[0].boot_id,
            calls=tuple((entry.boot_id, entry.record) for entry in batch),
            load=self.engine.load,
            health=self.engine.health,
        )

    # -- to the leader -------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """Introduces the engine as it is now."""
        return Hello(
            engine_id=self.engine_id,
            engine_address=self.engine_address,
            sidecar_address=self.sidecar_address,
            engine=self.engine.hello,
            models=self.models,
            health=self.engine.health,
            epoch=self.directives.epoch,
            draining=self.draining,
            unacked_seq=self.journal.last_unacked,
        )

    def greeting(self) -> list[ToLeader]:
        """The first messages of a stream: hello, and the whole journal."""
        self._sent_seq, self._sent = 0, None
        return [self.hello(), *self._journal_reports(self.journal.entries())]

    def _report(self, *calls: tuple[str, CallRecord]) -> None:
        engine = self.engine
        self._note_sent()
        self._to_leader(Report(boot_id=engine.boot_id, calls=calls, load=engine.load, health=engine.health))

    def _facts(self) -> tuple[Load | None, Health]:
        load = self.engine.load
        return msgspec.structs.replace(load, last_step_age_us=0) if load is not None else None, self.engine.health

    def _note_sent(self) -> None:
        self._sent, self._sent_us = self._facts(), _now_us()

    def _is_news(self) -> bool:
        """False when a heartbeat would repeat the last report of a few seconds ago."""
        facts = self._facts()
        is_due = _now_us() - self._sent_us >= UNCHANGED_BEAT_S * 1e6
        return facts != self._sent or not facts[1].is_serving or is_due

    def _to_leader(self, message: ToLeader) -> None:
        if self.leader is not None:
            self.leader.send(message)

    # -- from the leader -----------------------------------------------------------------------------------------

    def received(self, message: FromLeader) -> None:
        match message:
            case Welcome():
                self.directives.welcome(message)
            case Directive():
                self.directives.execute(message)
            case Ack():
                self.recorder.acknowledge(message.seq)

    def _to_engine(self, message: ToEngine) -> None:
        if self.link is not None:
            self.link.send(message)

    # -- draining ------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """This process is about to end: drains whatever engine boots meanwhile."""
        self._is_leaving = True
        self.drain()

    def drain(self) -> None:
        """No new programs until another engine boots."""
        self.draining = True
        self._to_leader(self.hello())

    @property
    def is_drained(self) -> bool:
        """The engine has nothing to do, and the control plane has every report."""
        load = self.engine.load
        is_busy = load is not None and load.running + load.waiting > 0 and self.engine.is_connected
        return not is_busy and self.recorder.is_idle and not self.journal.unacked
