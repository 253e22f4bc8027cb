"""One engine, as the control plane knows it: what its sidecar reports, and how its calls end. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agentserving.contract.ids import CallId, EngineId, ProgramKey

from agentserving_controlplane.engines.facts import Capabilities, Load
from agentserving_controlplane.engines.health import READY, Condition, EngineState, Health, condition_of
from agentserving_controlplane.engines.outliers import OutlierRecord

# Weight of the newest call in an engine's mean service time.
SMOOTHING = 0.1
# Parts of a call's service in which loads are counted, and how many of them a full batch takes from a further call.
CALL_PARTS, SLOWED = 1_000_000, 50_000
# Until an engine has measured its own: 8B parameters on one A100 take 30 to 100 us a token, and calls are seconds.
PREFILL_US_PER_TOKEN, CALL_US = 50.0, 500_000.0

# Fields that neither the choice of an engine nor what gateways know of it depends on.
_UNRANKED = frozenset({
    "engine_id", "changed", "adopted", "heard_us", "heard_unix_us", "health_reason", "policy_version", "policy_error",
})  # fmt: skip
_set = object.__setattr__


@dataclass(slots=True, kw_only=True, eq=False)
class Engine:
    """One engine. `calls` is the process table's live view of the calls admitted to it and not ended.

    Each assignment adds the engine to `changed`, so no change can be missing from the order of engines (ranking.py).
    """

    engine_id: EngineId
    # Engines to examine again before the next choice; shared by all engines of a registry.
    changed: set[EngineId] = field(default_factory=set, repr=False)
    calls: Mapping[CallId, ProgramKey] = field(default_factory=dict)
    boot_id: str = ""
    address: str = ""
    sidecar_address: str = ""
    attached: bool = False
    # An administrator's drain, which outlives boots; and the sidecar's own, which ends with the next boot.
    drained: bool = False
    leaving: bool = False
    health: Health = Health.UNSPECIFIED
    health_reason: str = ""
    capabilities: Capabilities = field(default_factory=Capabilities)
    load: Load = field(default_factory=Load)
    policy_version: int = 0
    policy_error: str = ""
    # Calls that only its reports have made known (MAX_ADOPTED).
    adopted: int = 0
    # Last message of its sidecar, by both clocks; and when the sidecar was lost.
    heard_us: int = 0
    heard_unix_us: int = 0
    lost_us: int = 0
    # When this leader first heard of its process.
    booted_unix_us: int = 0
    # Smoothed service time of its calls.
    call_us: float = CALL_US
    outliers: OutlierRecord = field(default_factory=OutlierRecord)

    def __setattr__(self, name: str, value: object) -> None:
        _set(self, name, value)
        if name not in _UNRANKED:
            self.changed.add(self.engine_id)

    @property
    def in_flight(self) -> int:
        """Calls admitted to it and not ended."""
        return len(self.calls)

    @property
    def is_ready(self) -> bool:
        """True when its state is READY."""
        return (
            self.attached
            and self.health <= Health.SERVING
            and bool(self.address)
            and not (self.drained or self.leaving or self.outliers.cause is not None)
        )

    @property
    def condition(self) -> Condition:
        """Its state, and why."""
        if self.is_ready:
            return READY
        draining = "drained by an administrator" if self.drained else "its pod is leaving" if self.leaving else ""
        return condition_of(
            attached=self.attached,
            has_address=bool(self.address),
            health=self.health,
            health_reason=self.health_reason,
            failing=self.outliers.reason(),
            draining=draining,
        )

    @property
    def state(self) -> EngineState:
        """See `condition`."""
        return self.condition.state

    def learn(self, service_us: int) -> None:
        """A call has completed here after so much service."""
        self.outliers.succeeded()
        self.call_us += SMOOTHING * (service_us - self.call_us)

    def boot(self, boot_id: str, now_unix_us: int = 0) -> None:
        """The engine process is `boot_id`; what another one did is no evidence against it."""
        if boot_id != self.boot_id:
            self.boot_id, self.booted_unix_us = boot_id, now_unix_us
            self.outliers = OutlierRecord()

    # -- costs ---------------------------------------------------------------------------------------------------

    @property
    def measured_call_us(self) -> int:
        """Smoothed service time of its calls; 0 = none has completed here."""
        return 0 if self.call_us == CALL_US else max(1, round(self.call_us))

    @property
    def queue_load(self) -> int:
        """How long a further call would wait here, and delay the calls there, in CALL_PARTS of a call's service."""
        slots, in_flight = self.capabilities.max_num_seqs or 1, len(self.calls)
        # Each call slows its batch a little, even a batch that is not full: spread out when all else is equal.
        if in_flight < slots:
            return SLOWED * in_flight // slots
        return CALL_PARTS * (in_flight + 1 - slots) // slots + SLOWED

    @property
    def capacity_tokens(self) -> int:
        """Tokens of context that its KV cache can contain."""
        return self.capabilities.num_blocks * self.capabilities.block_size
