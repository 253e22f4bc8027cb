"""The engines that the control plane knows. Pure.

Time is an argument (microseconds of a monotonic clock), so virtual time runs the same code. Engines change by what
their sidecars report and how their calls end. `refresh` brings what is derived from them up to date: the order in which
they take calls (`ranking`), and counts. Its cost is that of the engines that have changed since.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping

from agentserving.contract.ids import CallId, EngineId, ProgramKey

from agentserving_controlplane.engines.engine import Engine
from agentserving_controlplane.engines.health import EngineState
from agentserving_controlplane.engines.outliers import Cause
from agentserving_controlplane.engines.ranking import Ranking, Standing
from agentserving_controlplane.errors import NotFoundError, UnavailableError
from agentserving_controlplane.table.states import Outcome

# An engine that has been LOST for this long, and has no calls, is forgotten: its series and list entries disappear.
FORGET_LOST_US = 30_000_000
# A STUCK engine may queue calls, if there is no other, while its sidecar has been heard within this time.
BEAT_US = 5_000_000
RETRY_S = 1.0

CallsOn = Callable[[EngineId], Mapping[CallId, ProgramKey]]


class EngineRegistry:
    """All engines that are attached, or were until recently."""

    def __init__(self, calls_on: CallsOn = lambda engine_id: {}, changed: set[EngineId] | None = None) -> None:
        """`changed` receives the engines whose calls have changed; without it, the caller adds them to `changed`."""
        self.engines: dict[EngineId, Engine] = {}
        self.ranking = Ranking()
        self.changed: set[EngineId] = set() if changed is None else changed
        # Engines drained by an administrator, known to this process or not.
        self.drained: set[EngineId] = set()
        self._calls_on = calls_on
        # What gateways know of an engine: where it is, and its state; None once it is lost.
        self._facts: dict[EngineId, tuple[str, EngineState]] = {}
        self._facts_revision = 0
        # READY engines that serve their calls; those ejected for rejections.
        self._proven: set[EngineId] = set()
        self._rejecting: set[EngineId] = set()
        # When engines that are lost and have no calls are forgotten.
        self._forget_due: list[tuple[int, EngineId]] = []

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
                changed=self.changed,
                calls=self._calls_on(engine_id),
                drained=engine_id in self.drained,
                lost_us=now_us,
            )
            # Before any other: engines keep the order in which they appeared, in virtual time too.
            self.ranking.put(engine)
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
        self.refresh()
        gone = []
        while self._forget_due and self._forget_due[0][0] < now_us:
            engine = self.engines.get(heapq.heappop(self._forget_due)[1])
            if engine is None or engine.attached or engine.calls:
                continue
            if engine.lost_us + FORGET_LOST_US < now_us:
                gone.append(engine)
                self._forget(engine.engine_id)
        return gone

    def _forget(self, engine_id: EngineId) -> None:
        del self.engines[engine_id]
        self.ranking.drop(engine_id)
        self._proven.discard(engine_id)
        self._rejecting.discard(engine_id)
        self._note_facts(engine_id, None)

    # -- what is derived -----------------------------------------------------------------------------------------

    @property
    def facts_revision(self) -> int:
        """Changes whenever an engine appears, disappears or has another address or state."""
        self.refresh()
        return self._facts_revision

    def refresh(self) -> None:
        """Examines the engines that have changed."""
        for engine_id in self.changed:
            engine = self.engines.get(engine_id)
            if engine is not None:
                self._examine(engine)
        self.changed.clear()

    def _examine(self, engine: Engine) -> None:
        engine_id, outliers = engine.engine_id, engine.outliers
        is_ready = self.ranking.put(engine).standing is Standing.READY
        if is_ready and not outliers.rejections and (engine.calls or engine.measured_call_us):
            self._proven.add(engine_id)
        else:
            self._proven.discard(engine_id)
        if is_ready:
            if self._facts.get(engine_id) != (facts := (engine.address, EngineState.READY)):
                self._rejecting.discard(engine_id)
                self._note_facts(engine_id, facts)
            return
        (self._rejecting.add if outliers.cause is Cause.REJECTIONS else self._rejecting.discard)(engine_id)
        self._note_facts(engine_id, (engine.address, engine.state) if engine.attached else None)
        if not engine.attached and not engine.calls:
            heapq.heappush(self._forget_due, (engine.lost_us + FORGET_LOST_US, engine_id))

    def _note_facts(self, engine_id: EngineId, facts: tuple[str, EngineState] | None) -> None:
        if self._facts.get(engine_id) != facts:
            self._facts_revision += 1
            if facts is None:
                del self._facts[engine_id]
            else:
                self._facts[engine_id] = facts

    # -- calls ---------------------------------------------------------------------------------------------------

    # `boot_id`: of the engine process that had the call. While the engine has not reported the call, it is empty, and
    # `admit_us`, when the call was admitted (Unix time), says whether it was an earlier process.

    def call_failed(self, engine_id: EngineId, now_us: int, boot_id: str = "", admit_us: int | None = None) -> None:
        """A call of the engine failed, or could not reach it."""
        engine = self._evident(engine_id, boot_id, admit_us)
        if engine is not None:
            engine.outliers.failed(now_us)
            self.changed.add(engine_id)

    def call_rejected(
        self, engine_id: EngineId, program: ProgramKey, now_us: int, boot_id: str = "", admit_us: int | None = None
    ) -> None:
        """The engine answered a call of a (root) program with 4xx."""
        engine = self._evident(engine_id, boot_id, admit_us)
        if engine is None:
            return
        self.refresh()
        others_ready = self.ranking.ready - (self.ranking.places[engine_id].standing is Standing.READY)
        others_serve = len(self._proven) > (engine_id in self._proven)
        engine.outliers.rejected(program, others_serve and len(self._rejecting) < others_ready, now_us)
        self.changed.add(engine_id)

    def call_ended(
        self,
        engine_id: EngineId,
        program: ProgramKey,
        outcome: Outcome,
        now_us: int,
        boot_id: str = "",
        admit_us: int | None = None,
    ) -> None:
        """A call of a (root) program has ended. Some outcomes are evidence for or against the engine."""
        match outcome:
            case Outcome.COMPLETED:
                engine = self._evident(engine_id, boot_id, admit_us)
                if engine is not None:
                    engine.outliers.succeeded()
                    self.changed.add(engine_id)
            case Outcome.FAILED:
                self.call_failed(engine_id, now_us, boot_id, admit_us)
            case Outcome.REJECTED:
                self.call_rejected(engine_id, program, now_us, boot_id, admit_us)

    def _evident(self, engine_id: EngineId, boot_id: str, admit_us: int | None) -> Engine | None:
        """The engine, if its present process had the call."""
        engine = self.engines.get(engine_id)
        if engine is None or boot_id not in ("", engine.boot_id):
            return None
        is_earlier = not boot_id and admit_us is not None and admit_us < engine.booted_unix_us
        return None if is_earlier else engine

    def call_admitted(self, engine_id: EngineId, call_id: CallId) -> None:
        """A call has been admitted to the engine."""
        engine = self.engines[engine_id]
        if engine.outliers.is_ejected:
            engine.outliers.tries(call_id)
            self.changed.add(engine_id)
