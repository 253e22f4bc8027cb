"""Between one engine and the control plane: reports up, directives down, nothing lost in between.

A terminal record goes: plugin -> journal (fsync) -> AckCalls to the plugin and report to the leader -> Ack -> out of
the journal. Whoever dies on the way, the one before still has it. Progress is told with seq 0 and never kept.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import structlog
from agentserving.contract.channel import (
    AckCalls,
    CallRecord,
    Cancel,
    EngineHello,
    EngineReport,
    Load,
    PolicyResult,
    Preempt,
    SetAccounts,
    SetHolds,
    SetPolicy,
    ToEngine,
)
from agentserving.contract.policy import InvalidPolicyError, to_dict
from agentserving.contract.policy_message import policy_from
from agentserving.v1 import engine_service_pb2 as pb
from agentserving.v1 import types_pb2

from agentserving_sidecar.attach import LeaderLink
from agentserving_sidecar.convert import call_report, load_message
from agentserving_sidecar.engine_link import EngineLink
from agentserving_sidecar.journal import Entry, Journal, JournalFullError
from agentserving_sidecar.progress_probe import Progress

log = structlog.get_logger()

# Terminal records of this long share one fsync.
GATHER_S = 0.005
RESEND_BATCH = 500


def _now_us() -> int:
    return time.monotonic_ns() // 1000


class Sidecar:
    """Glue; implements EngineEvents and LeaderEvents."""

    def __init__(
        self, engine_id: str, engine_address: str, sidecar_address: str, journal: Journal, progress: Progress
    ) -> None:
        self.engine_id, self.engine_address, self.sidecar_address = engine_id, engine_address, sidecar_address
        self.journal, self.progress = journal, progress
        self.engine: EngineHello | None = None
        self.engine_present = False
        self.load: Load | None = None
        self.models: list[str] = []
        self.epoch = 0
        self.draining = False
        self._leaving = False
        self.stuck = False
        self._heard_us = _now_us()
        self.link: EngineLink | None = None
        self.leader: LeaderLink | None = None
        self._policy: types_pb2.PolicyVersion | None = None
        self._holds: set[str] = set()
        self._terminal: list[CallRecord] = []
        self._gathering: asyncio.TimerHandle | None = None

    def connect(self, channel_dir: Path, leader: LeaderLink) -> None:
        """Wires both links."""
        self.link, self.leader = EngineLink(channel_dir, 0, self), leader

    # -- from the engine -----------------------------------------------------------------------------------------

    def engine_hello(self, rank: int, hello: EngineHello) -> None:
        """A boot id that we have not seen: calls of the old boot are gone."""
        if self.engine is not None and self.engine.boot_id != hello.boot_id:
            # Its last records first: whoever hears that a boot is over gives up what it has not heard the end of.
            self._keep()
            self._tell_down(self.engine.boot_id)
            # It was the old engine that was to go.
            self.draining = self._leaving
        self.engine, self.engine_present, self._heard_us = hello, True, _now_us()
        if self._policy is not None:
            self._send_policy()
        if self.epoch:
            self._to_engine(SetHolds(sorted(self._holds)))
        if self.leader is not None:
            self.leader.renew()
        log.info("engine connected", boot=hello.boot_id, kind=hello.engine_kind, version=hello.engine_version)

    def engine_away(self, rank: int) -> None:
        """Nothing is lost by a broken channel; only a new boot id or a dead socket for long means a dead engine."""
        self.engine_present = False

    def check_progress(self) -> None:
        """On each report, and now and then: a stopped engine sends none. A change is told at once."""
        silent_us = _now_us() - self._heard_us if self.engine_present else 0
        stuck = self.progress.is_stuck(self.load, silent_us)
        if stuck == self.stuck:
            return
        self.stuck = stuck
        log.warning("the engine is stuck" if stuck else "the engine goes on", silent_us=silent_us)
        if self.leader is not None and self.engine is not None:
            self.leader.send(pb.AttachRequest(report=self._report(0, [], self.engine.boot_id)))

    def _tell_down(self, boot_id: str) -> None:
        if self.leader is not None:
            self.leader.send(pb.AttachRequest(report=pb.Report(boot_id=boot_id, engine_down=True)))

    def engine_report(self, rank: int, report: EngineReport) -> None:
        """Terminal records are gathered for one fsync; the rest goes straight on."""
        self.load, self._heard_us = report.load, _now_us()
        self.check_progress()
        self._terminal += [record for record in report.calls if record.outcome]
        if self._terminal and self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(GATHER_S, self._keep)
        live = [record for record in report.calls if not record.outcome]
        if self.leader is not None and self.engine is not None:
            self.leader.send(pb.AttachRequest(report=self._report(0, live, self.engine.boot_id)))

    def _keep(self) -> None:
        self._gathering = None
        records, self._terminal = self._terminal, []
        if not records or self.engine is None:
            return
        try:
            entries = self.journal.append(self.engine.boot_id, records)
        except (JournalFullError, OSError) as error:
            # Not acknowledged: the plugin keeps them and sends them again when it is connected anew.
            log.error("journal cannot take records", error=str(error), records=len(records))
            self._terminal = records + self._terminal
            self._gathering = asyncio.get_running_loop().call_later(1.0, self._keep)
            return
        self._to_engine(AckCalls([(record.call_id, record.attempt) for record in records]))
        self._send_entries(entries)

    def _send_entries(self, entries: list[Entry]) -> None:
        if self.leader is not None and entries:
            records = [entry.record for entry in entries]
            report = self._report(entries[-1].seq, records, entries[-1].boot_id)
            self.leader.send(pb.AttachRequest(report=report))

    def _report(self, seq: int, records: list[CallRecord], boot_id: str) -> pb.Report:
        return pb.Report(
            seq=seq,
            load=load_message(self.load) if self.load is not None else None,
            calls=[call_report(record, boot_id) for record in records],
            stuck=self.stuck,
            boot_id=boot_id,
        )

    def engine_policy(self, rank: int, result: PolicyResult) -> None:
        """Told to the leader: it counts who follows."""
        if self.leader is not None:
            self.leader.send(pb.AttachRequest(policy_ack=pb.PolicyAck(version=result.version, error=result.error)))

    # -- from the leader -----------------------------------------------------------------------------------------

    def hello(self) -> pb.EngineHello | None:
        """See LeaderEvents."""
        engine = self.engine
        if engine is None:
            return None
        return pb.EngineHello(
            engine_id=self.engine_id,
            boot_id=engine.boot_id,
            address=self.engine_address,
            sidecar_address=self.sidecar_address,
            epoch=self.epoch,
            draining=self.draining,
            unacked_seq=self.journal.last_unacked,
            capabilities=types_pb2.EngineCapabilities(
                engine_kind=engine.engine_kind,
                engine_version=engine.engine_version,
                plugin_version=engine.plugin_version,
                models=self.models,
                max_num_seqs=engine.max_num_seqs,
                max_model_len=engine.max_model_len,
                block_size=engine.block_size,
                num_blocks=engine.num_blocks,
                data_parallel_size=engine.data_parallel_size,
                async_scheduling=engine.async_scheduling,
            ),
        )

    def unacked(self) -> list[pb.Report]:
        """Everything in the journal, in order, in batches."""
        entries = list(self.journal.unacked.values())
        return [
            self._report(batch[-1].seq, [entry.record for entry in batch], batch[-1].boot_id)
            for batch in (entries[at : at + RESEND_BATCH] for at in range(0, len(entries), RESEND_BATCH))
        ]

    def leader_welcome(self, welcome: pb.Welcome) -> None:
        """The policy in force comes with it."""
        if welcome.epoch < self.epoch:
            log.error("a leader of an older epoch", theirs=welcome.epoch, ours=self.epoch)
            return
        self.epoch = welcome.epoch
        self._take_policy(welcome.policy)
        # Replaces what we knew: programs may have been let go while we were away.
        self._holds = set(welcome.held_program_ids)
        self._to_engine(SetHolds(sorted(self._holds)))
        log.info("attached", epoch=welcome.epoch, policy=welcome.policy.policy.name)

    def leader_directive(self, directive: pb.Directive) -> None:
        """Directives of an older epoch are refused."""
        if directive.epoch < self.epoch:
            log.error("directive of an older epoch refused", theirs=directive.epoch, ours=self.epoch)
            return
        match directive.WhichOneof("directive"):
            case "accounts":
                accounts = [(a.root_program_id, a.attained_service_us, a.wait_us) for a in directive.accounts.accounts]
                self._to_engine(SetAccounts(accounts))
            case "policy":
                self._take_policy(directive.policy)
            case "preempt":
                self._to_engine(Preempt(directive.preempt.call_id))
            case "pause":
                told = directive.pause
                (self._holds.add if told.paused else self._holds.discard)(told.program_id)
                self._to_engine(SetHolds(sorted(self._holds)))
            case "cancel":
                self._to_engine(Cancel(list(directive.cancel.call_ids)))
            case "drain":
                self.drain()

    def leader_ack(self, seq: int) -> None:
        """Out of the journal."""
        self.journal.ack(seq)

    def _take_policy(self, told: types_pb2.PolicyVersion) -> None:
        self._policy = told
        self._send_policy()

    def _send_policy(self) -> None:
        if self._policy is None:
            return
        try:
            values = to_dict(policy_from(self._policy.policy))
        except InvalidPolicyError as error:
            self.engine_policy(0, PolicyResult(self._policy.version, str(error)))
            return
        self._to_engine(SetPolicy(self._policy.version, values))

    def _to_engine(self, message: ToEngine) -> None:
        if self.link is not None:
            self.link.send(message)

    def leave(self) -> None:
        """This process is to end: drains, whatever engine boots meanwhile."""
        self._leaving = True
        self.drain()

    def drain(self) -> None:
        """No new programs until another engine boots."""
        self.draining = True
        if self.leader is not None:
            self.leader.renew()
