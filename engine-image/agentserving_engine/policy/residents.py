"""What the working set (working_set.py) knows about programs, asks about calls, and which KV bounds it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agentserving.contract.service_class import ServiceClass

from agentserving_engine.policy.footprint import Context
from agentserving_engine.policy.retention import Place

# Contexts may grow to so many times the capacity before a program is displaced.
GROWTH = 1.15
# Share of host memory that may be filled: contexts grow there, too, and what is being loaded takes room twice.
HOST_SHARE = 0.85
# Wait after which a program comes first, and time for which an admitted one is safe from such programs.
AGE_US, HOLD_US = 3_600_000_000, 60_000_000
MAX_LEASE_US = 600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """The KV that bounds the working set: its blocks, and how long a context stays after a call."""

    blocks: int
    lease_us: int

    @classmethod
    def of(cls, gpu_blocks: int, host_blocks: int, us_per_block: float) -> Tier:
        """The engine's KV, or host memory if that is larger; `us_per_block`: time to compute a block."""
        if host_blocks <= gpu_blocks:
            return cls(blocks=gpu_blocks, lease_us=int(min(MAX_LEASE_US, us_per_block * gpu_blocks)))
        lease_us = int(min(MAX_LEASE_US, us_per_block * host_blocks))
        return cls(blocks=int(HOST_SHARE * host_blocks), lease_us=lease_us)


@dataclass(slots=True)
class Kept:
    """A context, and until when it counts."""

    context: Context
    # None while its call is here.
    until_us: int | None = None


@dataclass(slots=True, kw_only=True)
class Admitted:
    """A program that may start calls."""

    since_us: int
    place: Place
    service_class: ServiceClass
    # Admitted by its age, and none of its calls has ended since.
    aged: bool = False
    # By the key of the call.
    contexts: dict[str, Kept] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)

    def goes_first(self, now_us: int) -> bool:
        """No class of service displaces it."""
        return self.aged and now_us - self.since_us < AGE_US


@dataclass(slots=True)
class Waiting:
    """A program with calls here that may not start."""

    since_us: int
    keys: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """What the working set asks about calls that are here; `order` is comparable, lower first."""

    context: Callable[[str], Context]
    place: Callable[[str], Place]
    order: Callable[[str], tuple[float, ...]]
    is_running: Callable[[str], bool]
    service_class: Callable[[str], ServiceClass]
