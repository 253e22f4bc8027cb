"""What the sidecar knows of its engine, and the engine's health as it follows from that."""

from __future__ import annotations

from agentserving.contract.channel import EngineHello, Load

from agentserving_sidecar.health import Front, FrontState, Plugin, health
from agentserving_sidecar.process_watch import ProcessWatch


class EngineState:
    """Updated by events; `evaluate` decides on the health. Times are microseconds of one monotonic clock."""

    def __init__(self, step_limit_us: int) -> None:
        self._step_limit_us = step_limit_us
        # Of the newest boot; stays when the connection is lost.
        self.hello: EngineHello | None = None
        self.load: Load | None = None
        self.is_connected = False
        self.front = Front()
        self._is_absent = False
        self._heard_us = self._lost_us = 0
        self._process = ProcessWatch(0)
        self.health = health(Plugin(), self.front, step_limit_us=step_limit_us)

    @property
    def boot_id(self) -> str:
        """Empty before the first boot."""
        return self.hello.boot_id if self.hello is not None else ""

    def connected(self, hello: EngineHello, pid: int, now_us: int) -> bool:
        """The plugin has connected; True when it is another boot than before."""
        is_new_boot = hello.boot_id != self.boot_id
        if is_new_boot:
            self.load = None
            # What the front of the boot before has answered says nothing of this one.
            self.front = Front()
        self.hello, self.is_connected, self._is_absent, self._heard_us = hello, True, False, now_us
        self._process = ProcessWatch(pid)
        return is_new_boot

    def heard(self, load: Load, now_us: int) -> None:
        """A report or heartbeat."""
        self.load, self._heard_us = load, now_us

    def disconnected(self, now_us: int) -> None:
        """The connection to the plugin was lost."""
        self.is_connected, self._lost_us = False, now_us
        self._process = ProcessWatch(0)

    def absent(self) -> None:
        """Nothing listens on the plugin's socket."""
        self._is_absent = True

    def front_answered(self, state: FrontState, detail: str) -> bool:
        """The result of a health check; True when the front has become healthy."""
        before = self.front
        has_served = before.has_served or (state is FrontState.HEALTHY and self.is_connected)
        self.front = Front(state, detail, has_served)
        return state is FrontState.HEALTHY and before.state is not FrontState.HEALTHY

    def evaluate(self, now_us: int) -> bool:
        """Updates the health; True when it has changed."""
        self._process.look(now_us)
        plugin = Plugin(
            has_booted=self.hello is not None,
            is_connected=self.is_connected,
            is_absent=self._is_absent,
            disconnected_us=0 if self.is_connected else now_us - self._lost_us,
            silent_us=now_us - self._heard_us if self.is_connected else 0,
            is_stopped=self._process.is_stopped,
            is_computing=self._process.is_computing,
            load=self.load,
            max_model_len=self.hello.max_model_len if self.hello is not None else 0,
        )
        before, self.health = self.health, health(plugin, self.front, step_limit_us=self._step_limit_us)
        return before != self.health
