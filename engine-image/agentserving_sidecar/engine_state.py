"""What the sidecar knows of its engine, and the engine's health as it follows from that."""

from __future__ import annotations

from agentserving.contract.channel import EngineHello, Load, PolicyResult

from agentserving_sidecar.health import Front, FrontState, Health, Plugin, State, health
from agentserving_sidecar.rank_state import RankState, joined_hello, joined_load

# The health of an engine is that of its worst rank.
_WORST_FIRST = (State.DOWN, State.STUCK, State.LOADING, State.SERVING)


class EngineState:
    """Updated by events; `evaluate` decides on the health. Times are microseconds of one monotonic clock."""

    def __init__(self, step_limit_us: int) -> None:
        self._step_limit_us = step_limit_us
        self._ranks = [RankState()]
        self.front = Front()
        self.health = health(Plugin(), self.front, step_limit_us=step_limit_us)

    @property
    def boot_id(self) -> str:
        """Empty before the first boot."""
        return self._ranks[0].boot_id

    def boot_of(self, rank: int) -> str:
        """The newest boot of one rank; at times it connects before rank 0, or is left of the boot before."""
        return self._rank(rank).boot_id

    @property
    def hello(self) -> EngineHello | None:
        """Of the newest boot, over the ranks that have connected so far; stays when connections are lost."""
        found = [rank.hello for rank in self._of_this_boot() if rank.hello is not None]
        return joined_hello(found) if found else None

    @property
    def load(self) -> Load | None:
        """Over the ranks that have reported; None before the first report of this boot."""
        found = [rank.load for rank in self._of_this_boot() if rank.load is not None]
        return joined_load(found) if found else None

    @property
    def is_connected(self) -> bool:
        """Every rank of the newest boot is connected."""
        connected = [rank for rank in self._of_this_boot() if rank.is_connected]
        return 0 < len(connected) == len(self._expected())

    def connected(self, hello: EngineHello, pid: int, now_us: int, rank: int = 0) -> bool:
        """The plugin has connected; True when the engine is another boot than before."""
        before = self.boot_id
        self._rank(rank).connected(hello, pid, now_us)
        is_new_boot = self.boot_id != before
        if is_new_boot:
            # What the front of the boot before has answered says nothing of this one.
            self.front = Front()
        return is_new_boot

    def heard(self, load: Load, now_us: int, rank: int = 0) -> None:
        """A report or heartbeat."""
        self._rank(rank).heard(load, now_us)

    def policy_answered(self, result: PolicyResult, rank: int = 0) -> PolicyResult | None:
        """What the engine says of a policy: it follows when every rank does. None while others have not answered."""
        self._rank(rank).policy = result
        follows = [each for each in self._of_this_boot() if each.policy == result]
        return result if result.error or len(follows) == len(self._expected()) else None

    def disconnected(self, now_us: int, rank: int = 0) -> None:
        """The connection to the plugin was lost."""
        self._rank(rank).disconnected(now_us)

    def absent(self, rank: int = 0) -> None:
        """Nothing listens on the plugin's socket."""
        self._rank(rank).absent()

    def front_answered(self, state: FrontState, detail: str) -> bool:
        """The result of a health check; True when the front has become healthy."""
        before = self.front
        has_served = before.has_served or (state is FrontState.HEALTHY and self.is_connected)
        self.front = Front(state, detail, has_served)
        return state is FrontState.HEALTHY and before.state is not FrontState.HEALTHY

    def evaluate(self, now_us: int) -> bool:
        """Updates the health; True when it has changed."""
        ranks = self._expected()
        found = []
        for number, rank in enumerate(ranks):
            each = health(rank.observe(self.boot_id, now_us), self.front, step_limit_us=self._step_limit_us)
            is_one_of_several = len(ranks) > 1 and each.reason
            found.append(Health(each.state, f"rank {number}: {each.reason}") if is_one_of_several else each)
        before, self.health = self.health, min(found, key=lambda each: _WORST_FIRST.index(each.state))
        return before != self.health

    def _rank(self, rank: int) -> RankState:
        while len(self._ranks) <= rank:
            self._ranks.append(RankState())
        return self._ranks[rank]

    def _expected(self) -> list[RankState]:
        """As many as rank 0 has said; an earlier boot may have had more."""
        hello = self._ranks[0].hello
        count = max(1, hello.data_parallel_size) if hello is not None else 1
        self._rank(count - 1)
        return self._ranks[:count]

    def _of_this_boot(self) -> list[RankState]:
        return [rank for rank in self._expected() if rank.boot_id == self.boot_id]
