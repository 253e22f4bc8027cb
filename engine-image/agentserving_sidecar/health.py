"""Is the engine serving? Decided on values that others observe. Pure.

What is observed: the connection to the scheduler plugin (its socket closes when the engine process ends; its heartbeats
come from an OS thread of its own, so they go on during a step and stop when the process is stopped), the HTTP front's
/health, and how long ago the last step ended.

A long step is not a hang. The limit of a step follows from the measured cost of a prompt token, and an engine process
that uses the CPU gets more time; only a step beyond these limits makes the engine STUCK.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agentserving.contract.channel import HEARTBEAT_S, Load

# Missed heartbeats before a connected plugin counts as silent.
SILENT_US = int(3 * HEARTBEAT_S * 1_000_000)
# A connection that breaks while the process lives, as when the plugin drops a slow reader, is back before this.
RECONNECT_US = 1_000_000
# Prompt tokens that one step may compute: vLLM's max_num_batched_tokens is 2,048 to 16,384 by default.
MAX_STEP_TOKENS = 16_384
# Times the expected length of the largest step.
STEP_MARGIN = 3
# Steps before the cost of a token is known compile kernels: minutes are possible, and a minute is usual.
UNMEASURED_STEP_US = 60_000_000
# Limit of a step during which the engine process uses the CPU. A GPU that hangs may look like that, too.
COMPUTING_STEP_US = 600_000_000


class State(StrEnum):
    """Health of the engine, as the contract names it."""

    SERVING = "serving"
    LOADING = "loading"
    STUCK = "stuck"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Health:
    """`reason` is for people; empty when SERVING. It does not change with time alone: each change is reported."""

    state: State
    reason: str = ""

    @property
    def is_serving(self) -> bool:
        """Whether the engine can be given calls."""
        return self.state is State.SERVING


class FrontState(StrEnum):
    """What GET /health of the engine's HTTP front gave last."""

    UNKNOWN = "has not been asked yet"
    HEALTHY = "is healthy"
    UNHEALTHY = "reports an error"
    REFUSED = "refuses connections"
    SILENT = "does not answer"


@dataclass(frozen=True, slots=True)
class Front:
    """The HTTP front. `has_served`: it has been healthy since the engine's boot. `detail`: status or error."""

    state: FrontState = FrontState.UNKNOWN
    detail: str = ""
    has_served: bool = False

    def __str__(self) -> str:
        text = f"the engine's HTTP front {self.state.value}"
        return f"{text} ({self.detail})" if self.detail else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """The scheduler plugin of the engine process.

    has_booted: it has connected at least once. is_absent: nothing listens on its socket.
    disconnected_us: since the connection was lost, 0 while it is there. silent_us: since its last message.
    is_stopped: the process is stopped by a signal. is_computing: it uses the CPU; None = cannot be seen.
    """

    has_booted: bool = False
    is_connected: bool = False
    is_absent: bool = False
    disconnected_us: int = 0
    silent_us: int = 0
    is_stopped: bool = False
    is_computing: bool | None = None
    load: Load | None = None
    max_model_len: int = 0


def health(plugin: Plugin, front: Front, *, step_limit_us: int) -> Health:
    """`step_limit_us`: shortest time after which a step without an end counts as a hang."""
    if not plugin.has_booted:
        return Health(State.LOADING, _not_booted(front))
    if not plugin.is_connected and (plugin.is_absent or plugin.disconnected_us >= RECONNECT_US):
        return Health(State.DOWN, f"the engine process has ended: its scheduler plugin is not connected, {front}")
    if plugin.is_stopped:
        return Health(State.STUCK, "the engine process is stopped by a signal")
    if plugin.is_connected and plugin.silent_us >= SILENT_US:
        return Health(State.STUCK, f"no heartbeat from the scheduler plugin for more than {SILENT_US / 1e6:g} s")
    if front.state is not FrontState.HEALTHY:
        return _front_trouble(front)
    return _steps(plugin, step_limit_us)


def _not_booted(front: Front) -> str:
    if front.state is FrontState.HEALTHY:
        return "the engine answers, but no scheduler plugin has connected: was it started with --scheduler-cls?"
    return "the engine is starting: its scheduler plugin has not connected"


def _front_trouble(front: Front) -> Health:
    if not front.has_served:
        return Health(State.LOADING, str(front))
    return Health(State.STUCK if front.state is FrontState.SILENT else State.DOWN, str(front))


def _steps(plugin: Plugin, step_limit_us: int) -> Health:
    load = plugin.load
    if load is None or not load.running:
        return Health(State.SERVING)
    limit_us = _limit_us(plugin, load, step_limit_us)
    if load.last_step_age_us + plugin.silent_us < limit_us:
        return Health(State.SERVING)
    return Health(State.STUCK, f"calls are running and no step has ended for more than {limit_us / 1e6:.0f} s")


def _limit_us(plugin: Plugin, load: Load, step_limit_us: int) -> int:
    if plugin.is_computing:
        return max(step_limit_us, COMPUTING_STEP_US)
    if not load.prefill_us_per_token:
        return max(step_limit_us, UNMEASURED_STEP_US)
    tokens = min(plugin.max_model_len, MAX_STEP_TOKENS)
    return max(step_limit_us, int(STEP_MARGIN * tokens * load.prefill_us_per_token))
