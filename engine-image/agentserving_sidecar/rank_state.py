"""What the sidecar knows of each scheduler of its engine, and of all of them as one engine. Pure but for /proc.

vLLM starts a scheduler for each data-parallel rank. Rank 0 is always there, and its hello says how many there are. All
ranks of one start of the engine have the same boot id; a rank with another boot than rank 0's is not ready yet, or
belongs to an engine process that has ended.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from agentserving.contract.channel import EngineHello, Load, PolicyResult

from agentserving_sidecar.health import Plugin
from agentserving_sidecar.process_watch import ProcessWatch

# Of several ranks, these say something about the slowest or longest; everything else in Load is summed.
_LARGEST = frozenset({"last_step_age_us", "prefill_us_per_token"})


class RankState:
    """One scheduler. Updated by events; times are microseconds of one monotonic clock."""

    def __init__(self) -> None:
        # Of its newest boot; stays when the connection is lost.
        self.hello: EngineHello | None = None
        self.load: Load | None = None
        # What it said last of a policy.
        self.policy: PolicyResult | None = None
        self.is_connected = False
        self._is_absent = False
        self._heard_us = self._lost_us = 0
        self._process = ProcessWatch(0)

    @property
    def boot_id(self) -> str:
        """Empty before the first boot."""
        return self.hello.boot_id if self.hello is not None else ""

    def connected(self, hello: EngineHello, pid: int, now_us: int) -> None:
        """The plugin has connected, perhaps of another boot than before."""
        if hello.boot_id != self.boot_id:
            self.load = self.policy = None
        self.hello, self.is_connected, self._is_absent, self._heard_us = hello, True, False, now_us
        self._process = ProcessWatch(pid)

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

    def observe(self, boot_id: str, now_us: int) -> Plugin:
        """What is observed of this rank, as one of the engine's boot `boot_id`."""
        self._process.look(now_us)
        return Plugin(
            has_booted=bool(boot_id) and self.boot_id == boot_id,
            is_connected=self.is_connected,
            is_absent=self._is_absent,
            disconnected_us=0 if self.is_connected else now_us - self._lost_us,
            silent_us=now_us - self._heard_us if self.is_connected else 0,
            is_stopped=self._process.is_stopped,
            is_computing=self._process.is_computing,
            load=self.load,
            max_model_len=self.hello.max_model_len if self.hello is not None else 0,
        )


def joined_hello(hellos: Sequence[EngineHello]) -> EngineHello:
    """One engine of all ranks, rank 0 first: calls and KV blocks are spread over them."""
    return msgspec.structs.replace(
        hellos[0],
        max_num_seqs=sum(each.max_num_seqs for each in hellos),
        num_blocks=sum(each.num_blocks for each in hellos),
    )


def joined_load(loads: Sequence[Load]) -> Load:
    """The load of all ranks as one. The last step is the oldest of those ranks that have something to do."""
    if len(loads) == 1:
        return loads[0]
    total = {
        name: (max if name in _LARGEST else sum)(getattr(load, name) for load in loads)
        for name in Load.__struct_fields__
    }
    ages = [load.last_step_age_us for load in loads if load.running]
    return Load(**{**total, "last_step_age_us": max(ages, default=min(load.last_step_age_us for load in loads))})
