"""How many calls wait, run and are open, by class of programs: what `auto` decides by besides sizes. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from agentserving_controlplane.policy.gittins import RELEVEL_US

# Waiting calls for each running one from which programs of like sizes finish one after the other, and below which calls
# go in the order of their arrival again. Chosen on two seeds of an airline ReAct trace, checked on others
# (docs/results).
BUSY, CALM = 4.0, 0.5
# Context of live programs, as a share of what the KV caches of all engines contain, from which waiting calls have the
# same effect, and below which they no longer have it. And the share of prompts that must have been evicted: contexts of
# programs that share a long prompt seem larger than they are.
CROWDED, ROOMY, EVICTED = 1.0, 0.8, 0.01
# A program is wide with so many open calls. Search trees have 5 open calls at most.
WIDE_CALLS = 8
# Share of the open calls of the last WINDOW decisions that are of wide programs from which calls go in the order of
# their arrival, and below which levels apply again. Chosen on seeds 0 to 5 of map-reduce alone and with others, checked
# on seeds 20 to 25 (docs/results). A decision every 10 s by itself let single wide programs turn the order back and
# forth, which is worse than either order.
WIDE, NARROW = 0.1, 0.05
WINDOW = 12
WINDOW_S = WINDOW * RELEVEL_US // 1_000_000
# Share of a class's programs from which the class is wide, and below which it no longer is, if there are MIN_PROGRAMS:
# the few that are left as a load ends have few open calls, too. Chosen on seeds 50 to 53, checked on seeds 60 to 65
# (docs/results).
WIDE_CLASS, NARROW_CLASS, MIN_PROGRAMS = 0.5, 0.1, 3


@dataclass(frozen=True, slots=True)
class Crowd:
    """Programs with open calls and those calls; `wide_*`: of them, programs with at least WIDE_CALLS, and theirs."""

    programs: int = 0
    calls: int = 0
    wide_programs: int = 0
    wide_calls: int = 0

    def with_program(self, calls: int) -> Crowd:
        """And one program more, with `calls` open calls; none changes nothing."""
        if not calls:
            return self
        wide = calls >= WIDE_CALLS
        return Crowd(self.programs + 1, self.calls + calls, self.wide_programs + wide, self.wide_calls + calls * wide)


@dataclass(frozen=True, slots=True)
class Contention:
    """Calls that wait and run in all engines, and open calls by class of programs. Without any, nothing is known.

    `context`: of live programs, as a share of what the KV caches of all engines contain; 0 = not known. `evicted`: the
    share of the prompts of late that had been in the caches and was evicted. `past`: former `crowds`.
    """

    waiting: int = 0
    running: int = 0
    crowds: Mapping[str, Crowd] = field(default_factory=dict)
    context: float = 0.0
    evicted: float = 0.0
    past: tuple[Mapping[str, Crowd], ...] = ()

    @classmethod
    def of(
        cls, waiting: int, running: int, programs: Iterable[tuple[str, int]], context: float = 0.0
    ) -> Contention:  # fmt: skip
        """From the calls in all engines, and the class and the number of open calls of each program."""
        crowds: dict[str, Crowd] = {}
        for class_name, calls in programs:
            crowds[class_name] = crowds.get(class_name, Crowd()).with_program(calls)
        return cls(waiting, running, crowds, context=context)

    def is_busy(self, was_busy: bool, *, only_if_crowded: bool = False) -> bool:
        """Many calls wait, or some do while contexts evict each other. `was_busy` is the former answer, which stays
        between the bounds."""
        if not self.waiting and not self.running:
            return was_busy
        # Order ends evictions: what shows that it is still needed is the context alone.
        is_crowded = self.context >= ROOMY if was_busy else self.context >= CROWDED and self.evicted >= EVICTED
        if self.waiting and is_crowded:
            return True
        return not only_if_crowded and self.waiting >= (CALM if was_busy else BUSY) * self.running

    def wide_share(self, without: Collection[str] = ()) -> float:
        """Of the open calls of all classes but those `without`, now and in the past, the share of wide programs."""
        times = (self.crowds, *self.past)
        crowds = [crowd for each in times for class_name, crowd in each.items() if class_name not in without]
        return sum(crowd.wide_calls for crowd in crowds) / max(1, sum(crowd.calls for crowd in crowds))

    def is_wide(self, was_wide: bool, without: Collection[str] = ()) -> bool:
        """Many open calls are of wide programs; `was_wide` is the former answer, which stays if no call waits."""
        if not self.waiting:
            return was_wide
        return self.wide_share(without) >= (NARROW if was_wide else WIDE)

    def is_wide_class(self, class_name: str, was_wide: bool) -> bool:
        """Most programs of the class are wide; `was_wide` is the former answer, which stays if no call waits."""
        crowd = self.crowds.get(class_name, Crowd())
        if not self.waiting or crowd.programs < (MIN_PROGRAMS if was_wide else 1):
            return was_wide
        return crowd.wide_programs >= (NARROW_CLASS if was_wide else WIDE_CLASS) * crowd.programs


class Prompts(Protocol):
    """Of all calls that have ended so far."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def evicted_tokens(self) -> int:
        """Computed again because engines had evicted them."""


class Recent:
    """The contention of the last WINDOW decisions."""

    def __init__(self) -> None:
        self._crowds: deque[Mapping[str, Crowd]] = deque(maxlen=WINDOW - 1)
        # (Prompt tokens, evicted tokens) at each decision.
        self._prompts: deque[tuple[int, int]] = deque(maxlen=WINDOW)

    def with_past(self, now: Contention, prompts: Prompts) -> Contention:
        """The contention of a new decision, with that of former ones."""
        tokens, evicted = prompts.prompt_tokens, prompts.evicted_tokens
        before = self._prompts[0] if self._prompts else (tokens, evicted)
        share = (evicted - before[1]) / max(1, tokens - before[0])
        found = replace(now, past=tuple(self._crowds), evicted=share)
        self._crowds.append(now.crowds)
        self._prompts.append((tokens, evicted))
        return found
