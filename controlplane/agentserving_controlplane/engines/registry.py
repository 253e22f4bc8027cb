"""The engines that are attached, as the control plane knows them. Pure: time is an argument (Unix microseconds)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agentserving.v1 import types_pb2

from agentserving_controlplane.engines.load_balancer import Candidate
from agentserving_controlplane.errors import NotFoundError, UnavailableError

READY = types_pb2.ENGINE_STATE_READY
DRAINING = types_pb2.ENGINE_STATE_DRAINING
STUCK = types_pb2.ENGINE_STATE_STUCK
LOST = types_pb2.ENGINE_STATE_LOST

_SMOOTHING = 0.1


@dataclass(slots=True)
class Engine:
    """One engine; `calls` are those admitted to it and not ended, kept by the process table."""

    engine_id: str
    boot_id: str = ""
    address: str = ""
    sidecar_address: str = ""
    attached: bool = False
    # Asked for by an administrator, and said by its sidecar: a pod that leaves comes back under the same name.
    draining: bool = False
    leaving: bool = False
    stuck: bool = False
    capabilities: types_pb2.EngineCapabilities = field(default_factory=types_pb2.EngineCapabilities)
    load: types_pb2.EngineLoad = field(default_factory=types_pb2.EngineLoad)
    policy_version: int = 0
    policy_error: str = ""
    calls: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    heard_us: int = 0
    call_us: float = 500_000.0

    @property
    def in_flight(self) -> int:
        """Calls admitted to it and not ended."""
        return len(self.calls)

    @property
    def state(self) -> types_pb2.EngineState.ValueType:
        """LOST beats STUCK beats DRAINING beats READY."""
        if not self.attached:
            return LOST
        if self.stuck:
            return STUCK
        return DRAINING if self.draining or self.leaving else READY

    def learn(self, service_us: int) -> None:
        """A call ended here after so much service."""
        self.call_us += _SMOOTHING * (service_us - self.call_us)

    def candidate(self) -> Candidate:
        """How the load balancer sees it."""
        tokens = self.capabilities.num_blocks * self.capabilities.block_size
        return Candidate(
            self.engine_id,
            self.in_flight,
            self.capabilities.max_num_seqs or 1,
            tokens,
            self.load.prompt_tokens - self.load.cached_tokens,
            call_us=self.call_us,
        )


class EngineRegistry:
    """All engines ever attached to this leader."""

    def __init__(self, calls_on: Callable[[str], Mapping[str, tuple[str, str]]] = lambda engine_id: {}) -> None:
        self.engines: dict[str, Engine] = {}
        self._calls_on = calls_on

    def get(self, engine_id: str) -> Engine:
        """The engine; NotFoundError when it never attached."""
        engine = self.engines.get(engine_id)
        if engine is None:
            known = ", ".join(sorted(self.engines)) or "none"
            raise NotFoundError("ENGINE_NOT_FOUND", f"no engine {engine_id!r}; attached: {known}", field="engine_id")
        return engine

    def ensure(self, engine_id: str) -> Engine:
        """The engine, made when new."""
        engine = self.engines.get(engine_id)
        if engine is None:
            engine = self.engines[engine_id] = Engine(engine_id, calls=self._calls_on(engine_id))
        return engine

    def reachable(self, engine_id: str) -> Engine:
        """An engine whose address is known; UnavailableError for one that has not attached since the start."""
        engine = self.engines.get(engine_id)
        if engine is None or not engine.address:
            raise UnavailableError("NO_ENGINE", f"engine {engine_id!r} has not attached yet", retry_after_s=1.0)
        return engine

    def candidates(self, exclude: frozenset[str], model: str, holding: frozenset[str]) -> list[Candidate]:
        """Engines that may take a call; a draining one only for programs it is `holding`."""
        ready = [e for e in self.engines.values() if e.state == READY and e.engine_id not in exclude]
        if not ready:
            ready = [e for e in self.engines.values() if e.state == DRAINING and e.engine_id in holding - exclude]
        if not ready:
            states = ", ".join(f"{e.engine_id} {types_pb2.EngineState.Name(e.state)}" for e in self.engines.values())
            raise UnavailableError(
                "NO_ENGINE", f"no engine can take a call ({states or 'none has attached'})", retry_after_s=1.0
            )
        serving = [e for e in ready if not model or not e.capabilities.models or model in e.capabilities.models]
        if not serving:
            names = sorted({name for e in ready for name in e.capabilities.models})
            raise NotFoundError(
                "MODEL_NOT_FOUND", f"no engine serves {model!r}; served: {', '.join(names)}", field="model"
            )
        return [e.candidate() for e in serving]

    def message(self, engine: Engine) -> types_pb2.Engine:
        """As it goes over the wire."""
        told = types_pb2.Engine(
            engine_id=engine.engine_id,
            boot_id=engine.boot_id,
            address=engine.address,
            state=engine.state,
            capabilities=engine.capabilities,
            load=engine.load,
            policy_version=engine.policy_version,
            calls_in_flight=engine.in_flight,
        )
        told.last_report_time.FromMicroseconds(engine.heard_us)
        return told
