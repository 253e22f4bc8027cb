"""The engines that the control plane knows, and which of them may take a call. Pure.

Time is an argument (microseconds of a monotonic clock), so virtual time runs the same code. `Engine` learns from what
its sidecar reports and how its calls end; `EngineRegistry.candidates` is the only filter between engines and the load
balancer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from agentserving.contract.ids import CallId, EngineId, ProgramKey

from agentserving_controlplane.engines.facts import Capabilities, Load
from agentserving_controlplane.engines.health import READY, Condition, EngineState, Health, condition_of
from agentserving_controlplane.engines.load_balancer import CALL_US, PREFILL_US_PER_TOKEN, Candidate
from agentserving_controlplane.engines.outliers import Cause, OutlierRecord
from agentserving_controlplane.errors import NotFoundError, UnavailableError
from agentserving_controlplane.table.states import Outcome

# Weight of the newest call in an engine's mean service time.
SMOOTHING = 0.1
# An engine that has been LOST for this long, and has no calls, is forgotten: its series and list entries disappear.
FORGET_LOST_US = 30_000_000
# A STUCK engine may queue calls, if there is no other, while its sidecar has been heard within this time.
BEAT_US = 5_000_000
RETRY_S = 1.0

CallsOn = Callable[[EngineId], Mapping[CallId, ProgramKey]]


@dataclass(slots=True, kw_only=True)
class Engine:
    """One engine. `calls` is the process table's live view of the calls admitted to it and not ended."""

    engine_id: EngineId
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
    # Last message of its sidecar, by both clocks; and when the sidecar was lost.
    heard_us: int = 0
    heard_unix_us: int = 0
    lost_us: int = 0
    # Smoothed service time of its calls.
    call_us: float = CALL_US
    outliers: OutlierRecord = field(default_factory=OutlierRecord)

    @property
    def in_flight(self) -> int:
        """Calls admitted to it and not ended."""
        return len(self.calls)

    @property
    def _serves(self) -> bool:
        return self.attached and bool(self.address) and self.health <= Health.SERVING

    @property
    def condition(self) -> Condition:
        """Its state, and why."""
        if self._serves and not (self.drained or self.leaving or self.outliers.is_ejected):
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
        self.call_us += SMOOTHING * (service_us - self.call_us)
        self.outliers.succeeded()

    def boot(self, boot_id: str) -> None:
        """The engine process is `boot_id`; what another one did is no evidence against it."""
        if boot_id != self.boot_id:
            self.boot_id = boot_id
            self.outliers = OutlierRecord()

    def serves(self, model: str) -> bool:
        """False when it is known not to have the model; empty = any."""
        return not model or not self.capabilities.models or model in self.capabilities.models

    def candidate(self) -> Candidate:
        """The engine as the load balancer sees it. An unmeasured prefill cost counts as PREFILL_US_PER_TOKEN."""
        return Candidate(
            engine_id=self.engine_id,
            in_flight=self.in_flight,
            max_num_seqs=self.capabilities.max_num_seqs or 1,
            capacity_tokens=self.capabilities.num_blocks * self.capabilities.block_size,
            prefilled_tokens=self.load.prefilled_tokens,
            prefill_us_per_token=self.load.prefill_us_per_token or PREFILL_US_PER_TOKEN,
            call_us=self.call_us,
        )


class EngineRegistry:
    """All engines that are attached, or were until recently."""

    def __init__(self, calls_on: CallsOn = lambda engine_id: {}) -> None:
        self.engines: dict[EngineId, Engine] = {}
        # Engines drained by an administrator, known to this process or not.
        self.drained: set[EngineId] = set()
        self._calls_on = calls_on

    def __iter__(self) -> Iterator[Engine]:
        return iter(self.engines.values())

    def get(self, engine_id: EngineId) -> Engine:
        """A known engine. NotFoundError."""
        engine = self.engines.get(engine_id)
        if engine is None:
            known = ", ".join(sorted(self.engines)) or "none"
            raise NotFoundError("ENGINE_NOT_FOUND", f"no engine {engine_id!r}; known: {known}", field="engine_id")
        return engine

    def ensure(self, engine_id: EngineId, now_us: int = 0) -> Engine:
        """The engine, created as LOST when it is new."""
        engine = self.engines.get(engine_id)
        if engine is None:
            engine = self.engines[engine_id] = Engine(
                engine_id=engine_id,
                calls=self._calls_on(engine_id),
                drained=engine_id in self.drained,
                lost_us=now_us,
            )
        return engine

    def reachable(self, engine_id: EngineId) -> Engine:
        """An engine whose address is known. UnavailableError for one that has not attached to this leader yet."""
        engine = self.engines.get(engine_id)
        if engine is None or not engine.address:
            raise UnavailableError("NO_ENGINE", f"engine {engine_id!r} has not attached yet", retry_after_s=RETRY_S)
        return engine

    # -- health --------------------------------------------------------------------------------------------------

    def set_drained(self, engine_id: EngineId, drained: bool) -> None:
        """Begins or ends an administrator's drain of an engine, known or not."""
        (self.drained.add if drained else self.drained.discard)(engine_id)
        engine = self.engines.get(engine_id)
        if engine is not None:
            engine.drained = drained

    def detach(self, engine: Engine, now_us: int) -> None:
        """The engine's sidecar is gone."""
        engine.attached, engine.lost_us = False, now_us

    def forget_lost(self, now_us: int) -> list[Engine]:
        """Removes engines that have long been LOST and have no calls; returns them."""
        gone = [
            engine
            for engine in self.engines.values()
            if not engine.attached and not engine.calls and now_us - engine.lost_us > FORGET_LOST_US
        ]
        for engine in gone:
            del self.engines[engine.engine_id]
        return gone

    def call_failed(self, engine_id: EngineId, now_us: int) -> None:
        """A call of the engine failed, or could not reach it."""
        engine = self.engines.get(engine_id)
        if engine is not None:
            engine.outliers.failed(now_us)

    def call_rejected(self, engine_id: EngineId, program: ProgramKey, now_us: int) -> None:
        """The engine answered a call of a (root) program with 4xx."""
        engine = self.engines.get(engine_id)
        if engine is None:
            return
        serving = [e for e in self.engines.values() if e is not engine and e.state is EngineState.READY]
        ejected = sum(e.outliers.cause is Cause.REJECTIONS for e in self.engines.values())
        others_serve = any(e.outliers.rejections == 0 and (e.calls or e.call_us != CALL_US) for e in serving)
        engine.outliers.rejected(program, others_serve and ejected < len(serving), now_us)

    def call_ended(self, engine_id: EngineId, program: ProgramKey, outcome: Outcome, now_us: int) -> None:
        """A call of a (root) program has ended. Some outcomes are evidence for or against the engine."""
        engine = self.engines.get(engine_id)
        if engine is None:
            return
        match outcome:
            case Outcome.COMPLETED:
                engine.outliers.succeeded()
            case Outcome.FAILED:
                engine.outliers.failed(now_us)
            case Outcome.REJECTED:
                self.call_rejected(engine_id, program, now_us)

    def call_admitted(self, engine_id: EngineId, call_id: CallId) -> None:
        """A call has been admitted to the engine."""
        engine = self.engines[engine_id]
        if engine.outliers.is_ejected:
            engine.outliers.tries(call_id)

    # -- choice --------------------------------------------------------------------------------------------------

    def candidates(
        self, exclude: frozenset[EngineId], model: str, holding: frozenset[EngineId], now_us: int
    ) -> list[Candidate]:
        """Engines that may take a call of a program whose context the engines in `holding` have.

        UnavailableError when there is none, NotFoundError when none serves the model.
        """
        known = [engine for engine in self.engines.values() if engine.engine_id not in exclude]
        serving = [engine for engine in known if engine.serves(model)] if model else known
        usable = self._usable(serving, holding, now_us)
        if not usable and model and (others := self._usable(known, holding, now_us)):
            names = ", ".join(sorted({name for engine in others for name in engine.capabilities.models}))
            raise NotFoundError("MODEL_NOT_FOUND", f"no engine serves {model!r}; served: {names}", field="model")
        if not usable:
            states = ", ".join(f"{engine.engine_id} {engine.state.name}" for engine in self.engines.values())
            raise UnavailableError(
                "NO_ENGINE", f"no engine can take a call ({states or 'none has attached'})", retry_after_s=RETRY_S
            )
        return [engine.candidate() for engine in usable]

    @staticmethod
    def _usable(engines: list[Engine], holding: frozenset[EngineId], now_us: int) -> list[Engine]:
        ready = [engine for engine in engines if engine.condition is READY]
        if len(ready) == len(engines):
            return ready
        by_state: dict[EngineState, list[Engine]] = {}
        for engine in engines:
            by_state.setdefault(engine.state, []).append(engine)
        failing = by_state.get(EngineState.FAILING, [])
        # One call decides whether an ejected engine comes back: waiting for the balancer to prefer it might take long.
        trials = [engine for engine in failing if engine.outliers.may_try(engine.calls, now_us)]
        draining = [engine for engine in by_state.get(EngineState.DRAINING, []) if engine.engine_id in holding]
        # The last resorts: an engine whose calls fail, and one that is slow but alive.
        stuck = [e for e in by_state.get(EngineState.STUCK, []) if e.address and now_us - e.heard_us <= BEAT_US]
        return trials[:1] or ready or draining or failing or stuck
