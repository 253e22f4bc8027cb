"""The leader's directives, passed on to the engine. What an engine must know after a reboot is remembered here."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from agentserving.contract.channel import (
    Cancel,
    PolicyResult,
    ProgramEnded,
    SetAccounts,
    SetPaused,
    SetPolicy,
    SetShares,
    ToEngine,
    ToolWait,
)
from agentserving.contract.ids import ProgramKey
from agentserving.contract.policy import to_dict

from agentserving_sidecar.values import Directive, Drain, Pause, PolicyVersion, Welcome

log = structlog.get_logger()


class Directives:
    """`to_engine` sends to the plugin; `refuse_policy` reports a policy that cannot be passed on; `drain` drains."""

    def __init__(
        self,
        *,
        to_engine: Callable[[ToEngine], object],
        refuse_policy: Callable[[PolicyResult], None],
        drain: Callable[[], None],
    ) -> None:
        self._to_engine, self._refuse_policy, self._drain = to_engine, refuse_policy, drain
        self._policy: PolicyVersion | None = None
        self._paused: set[ProgramKey] = set()
        self._shares = SetShares([])
        # Of the newest leader that has welcomed us; 0 = none yet.
        self.epoch = 0

    def welcome(self, welcome: Welcome) -> None:
        """Takes over a leader's policy and its set of paused programs, unless its epoch is over."""
        if welcome.epoch < self.epoch:
            log.error("a leader of an older epoch was ignored", epoch=welcome.epoch, newest=self.epoch)
            return
        is_new_leader = welcome.epoch != self.epoch
        self.epoch = welcome.epoch
        self._policy = welcome.policy
        self._paused = set(welcome.paused)
        self._shares = welcome.shares
        self.send_state()
        if is_new_leader:
            # Leaders answer each hello with a welcome.
            log.info("attached", epoch=welcome.epoch, policy=welcome.policy.name)

    def send_state(self) -> None:
        """Sends the engine what holds now: it has just connected, or the leader is a new one."""
        if self.epoch:
            self._send_policy()
            self._send_paused()
            self._to_engine(self._shares)

    def execute(self, directive: Directive) -> None:
        """Executes a directive, unless its epoch is over."""
        if directive.epoch < self.epoch:
            log.error("a directive of an older epoch was refused", epoch=directive.epoch, newest=self.epoch)
            return
        match directive.action:
            case PolicyVersion() as policy:
                self._policy = policy
                self._send_policy()
            case Pause(program, paused):
                (self._paused.add if paused else self._paused.discard)(program)
                self._send_paused()
            case SetShares() as shares:
                self._shares = shares
                self._to_engine(shares)
            case Drain():
                self._drain()
            case SetAccounts() | Cancel() | ToolWait() | ProgramEnded() as message:
                self._to_engine(message)
            case None:
                log.warning("a directive of an unknown kind was ignored: the control plane is newer than this sidecar")

    def _send_policy(self) -> None:
        if self._policy is None:
            return
        if self._policy.policy is None:
            self._refuse_policy(PolicyResult(self._policy.version, self._policy.error))
            return
        self._to_engine(SetPolicy(self._policy.version, to_dict(self._policy.policy)))

    def _send_paused(self) -> None:
        self._to_engine(SetPaused(sorted((str(key.tenant), str(key.program_id)) for key in self._paused)))
