"""What a control plane says about its cluster, as values. Pure; `control_planes` fetches it, `status` shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

# Rejections are shown for this long after the last one, so that a condition does not flap with the traffic.
REJECTIONS_SHOWN_S = 300.0


class EngineState(StrEnum):
    """State of an engine as the leading control plane derives it; the names are the contract's."""

    UNSPECIFIED = "UNSPECIFIED"
    READY = "READY"
    DRAINING = "DRAINING"
    STUCK = "STUCK"
    LOST = "LOST"
    LOADING = "LOADING"
    DOWN = "DOWN"
    FAILING = "FAILING"


@dataclass(frozen=True, slots=True)
class EngineView:
    """One engine. `engine_id` is the name of its pod; `reason` is for people, empty when READY.

    The obstacles (`agentserving.contract.kv_obstacles`) are why it does not do a part of a policy.
    """

    engine_id: str
    state: EngineState
    reason: str = ""
    retention_obstacle: str = ""
    working_set_obstacle: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A control plane's answer.

    `policy_generation` is the generation of the spec whose policy is in force, 0 = of none that we know.
    `rejecting_engines` have rejected tickets of admitted calls within REJECTIONS_SHOWN_S.
    """

    programs: int
    policy_name: str
    policy_version: int
    policy_generation: int
    pending_engines: int
    store_healthy: bool
    store_message: str
    engines: tuple[EngineView, ...] = ()
    rejecting_engines: tuple[str, ...] = ()
    # The preset whose order `auto` has chosen; None under other policies.
    policy_chosen: str | None = None
    # The policy retains KV during tool waits; it bounds the working set.
    retains: bool = False
    bounds: bool = False


@dataclass(frozen=True, slots=True)
class TicketCount:
    """Rejected tickets of one engine since its boot. `rejected_at`: when the count grew last, None = not yet."""

    boot_id: str
    rejected: int
    rejected_at: float | None = None


@dataclass(frozen=True, slots=True)
class Rejections:
    """Who rejects tickets, from counters that only grow: the difference between two looks counts."""

    counts: Mapping[str, TicketCount] = field(default_factory=dict)

    def after(self, engines: Sequence[tuple[str, str, int]], now_s: float) -> Rejections:
        """With (engine id, boot id, rejected tickets) as seen now. What an engine counted before our first look at it
        is not news; what it counted since it booted after that look is."""
        counts = {}
        for engine_id, boot_id, rejected in engines:
            before = self.counts.get(engine_id)
            base = rejected if before is None else before.rejected if before.boot_id == boot_id else 0
            grown = rejected > base
            at = now_s if grown else before.rejected_at if before is not None else None
            counts[engine_id] = TicketCount(boot_id, rejected, at)
        return Rejections(counts)

    def rejecting(self, now_s: float) -> tuple[str, ...]:
        """Engines that rejected tickets within REJECTIONS_SHOWN_S, by name."""
        return tuple(
            sorted(
                engine_id
                for engine_id, count in self.counts.items()
                if count.rejected_at is not None and now_s - count.rejected_at < REJECTIONS_SHOWN_S
            )
        )
