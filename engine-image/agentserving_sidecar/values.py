"""What the sidecar and the leader say to each other, as values; `api.messages` translates them to and from protobuf.

Messages of the engine channel (`agentserving.contract.channel`) are values already and are used as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agentserving.contract.channel import (
    CallRecord,
    Cancel,
    EngineHello,
    Load,
    PolicyResult,
    ProgramEnded,
    SetAccounts,
    SetShares,
    ToolWait,
)
from agentserving.contract.ids import EngineId, ProgramKey
from agentserving.contract.policy import Policy

from agentserving_sidecar.health import Health

# -- to the leader -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Introduces the engine. `engine` is None until the scheduler plugin has connected for the first time.

    unacked_seq: highest seq of the journal that is not acknowledged; these reports follow. 0 = none.
    """

    engine_id: EngineId
    engine_address: str
    sidecar_address: str
    engine: EngineHello | None
    models: tuple[str, ...]
    health: Health
    epoch: int
    draining: bool
    unacked_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Calls, each with the boot of the engine it ran in. `seq` 0: not in the journal, so not to be acknowledged.

    engine_down: boot `boot_id` is over; its calls without a terminal report have failed.
    """

    boot_id: str
    health: Health
    load: Load | None = None
    calls: tuple[tuple[str, CallRecord], ...] = ()
    seq: int = 0
    engine_down: bool = False

    @property
    def is_progress(self) -> bool:
        """Superseded by the next report: may be skipped when the leader is slow."""
        return not (self.seq or self.engine_down or any(record.outcome for _, record in self.calls))


ToLeader = Hello | Report | PolicyResult

# -- from the leader -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVersion:
    """A policy to execute; `policy` is None when this version of the sidecar cannot read it, and `error` says why."""

    version: int
    name: str
    policy: Policy | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """Pauses or resumes a root program."""

    program: ProgramKey
    paused: bool


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new programs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The leader's first message. `paused`: all paused root programs; the engine resumes every other one."""

    epoch: int
    policy: PolicyVersion
    paused: frozenset[ProgramKey]
    shares: SetShares = field(default_factory=lambda: SetShares([]))


# None: an action that this version does not know.
Action = SetAccounts | SetShares | PolicyVersion | Pause | Cancel | Drain | ToolWait | ProgramEnded | None


@dataclass(frozen=True, slots=True)
class Directive:
    """An action of the leader of an epoch."""

    epoch: int
    action: Action


@dataclass(frozen=True, slots=True)
class Ack:
    """All reports up to and including this seq are durable."""

    seq: int


FromLeader = Welcome | Directive | Ack
