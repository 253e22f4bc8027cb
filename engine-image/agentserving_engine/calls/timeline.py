"""Where one call's time in the engine goes: waiting, computing its prompt, decoding. Pure.

The phases follow each other without gaps from the call's arrival to its end. Of a call with several requests, the one
that is furthest counts: the call decodes while any of them does. Each event is O(1), and so is the memory.
"""

from __future__ import annotations

from agentserving.contract.phases import PhaseKind, Phases

# Beyond it, a phase is added to the last one of its kind: totals stay exact, the order does not.
MAX_PHASES = 16

_WAITING = (PhaseKind.QUEUE, PhaseKind.PREEMPTED)


class Timeline:
    """Phases of a call. Times are microseconds on the engine's clock.

    `stopped_us`: for how long, in all, the call's program has been paused or left out of the working set.
    """

    __slots__ = ("_has_run", "_kind", "_phases", "_running", "_since_us", "_stopped_us")

    def __init__(self, now_us: int, stopped_us: int = 0) -> None:
        self._phases: list[tuple[int, int]] = []
        self._kind = PhaseKind.QUEUE
        self._since_us, self._stopped_us = now_us, stopped_us
        # Running requests: whether each has produced a token since it started.
        self._running: dict[str, bool] = {}
        self._has_run = False

    def arrived(self, now_us: int, stopped_us: int) -> None:
        """A further request of the call has arrived; one that follows others (beam search) waits for its own start."""
        if not self._running:
            self._has_run = False
            self._enter(PhaseKind.QUEUE, now_us, stopped_us)

    def started(self, key: str, now_us: int, stopped_us: int) -> None:
        """A request runs from now on."""
        self._running.setdefault(key, False)
        self._has_run = True
        self._change(now_us, stopped_us)

    def produced(self, key: str, now_us: int) -> None:
        """A running request has new tokens, as of now."""
        if self._running.get(key, True):
            return
        self._running[key] = True
        self._change(now_us, self._stopped_us)

    def preempted(self, key: str, now_us: int, stopped_us: int) -> None:
        """A request waits again."""
        if self._running.pop(key, None) is not None:
            self._change(now_us, stopped_us)

    def ended(self, key: str, now_us: int, stopped_us: int, *, others: bool = False) -> None:
        """A request has left the engine; `others`: further ones of the call have not."""
        if self._running.pop(key, None) is not None and others:
            self._change(now_us, stopped_us)
        else:
            self._advance(now_us, stopped_us)

    def resync(self, running: set[str], now_us: int, stopped_us: int) -> None:
        """These requests of the call run, whatever was reported before."""
        self._running = {key: self._running.get(key, False) for key in sorted(running)}
        self._change(now_us, stopped_us)

    def phases(self, now_us: int, stopped_us: int) -> Phases:
        """All phases up to now."""
        self._advance(now_us, stopped_us)
        return tuple(self._phases)

    @property
    def past(self) -> Phases:
        """All phases up to the last event."""
        return tuple(self._phases)

    def _change(self, now_us: int, stopped_us: int) -> None:
        if self._running:
            kind = PhaseKind.DECODE if any(self._running.values()) else PhaseKind.PREFILL
        else:
            kind = PhaseKind.PREEMPTED if self._has_run else PhaseKind.QUEUE
        self._enter(kind, now_us, stopped_us)

    def _enter(self, kind: PhaseKind, now_us: int, stopped_us: int) -> None:
        self._advance(now_us, stopped_us)
        self._kind = kind

    def _advance(self, now_us: int, stopped_us: int) -> None:
        """Closes the present phase. Of a wait, the time in which the program was stopped comes first."""
        elapsed_us = max(0, now_us - self._since_us)
        if self._kind in _WAITING:
            held_us = min(elapsed_us, max(0, stopped_us - self._stopped_us))
            self._add(PhaseKind.HELD, held_us)
            elapsed_us -= held_us
        self._add(self._kind, elapsed_us)
        self._since_us, self._stopped_us = max(now_us, self._since_us), stopped_us

    def _add(self, kind: int, us: int) -> None:
        phases = self._phases
        if us <= 0:
            return
        at = len(phases) - 1
        if len(phases) >= MAX_PHASES:
            at = next((i for i in range(len(phases) - 1, -1, -1) if phases[i][0] == kind), len(phases))
        if 0 <= at < len(phases) and phases[at][0] == kind:
            phases[at] = kind, phases[at][1] + us
        else:
            phases.append((kind, us))
