"""Admits whole programs to one engine while their contexts fit into its KV beside each other. Pure.

A program that is admitted keeps its contexts for some time after each call, as its next call reads them again; the
calls of other programs wait, without a place in the queue of calls, until it is their turn (Denning's working set, with
exact footprints: blocks that contexts share count once). The KV that counts is that of the tier that bounds: the
engine's, or host memory behind it.

- Programs are admitted in the order of the policy, strictly: nobody passes the first one that does not fit.
- An admitted program stays while it has calls, and for a *lease* after each: the time that computing a whole tier of KV
  takes. A better level alone displaces no program.
- A better class of service does: a program that does not fit displaces programs of worse classes of its tenant, if that
  makes room. It does not wait for their running calls, which give way to its own in the queue of calls.
- Contexts grow. Beyond GROWTH times the capacity the worst programs are displaced, until one is left; instead of each
  the worst of a worse class of its tenant, if there is one.
- A program that has waited for AGE_US is *aged*: aged programs come first, in the order of their arrival, and displace
  admitted ones after HOLD_US. Running calls are not stopped, so the n-th of them is admitted at most
  AGE_US + n x (HOLD_US + D) after it came, where D is the longest time that a call runs.
- While a better class of its tenant is here, a class has one aged program at a time (class_aging.py says why). Classes
  do not displace it until one of its calls has ended, or AGE_US has passed.
"""

from __future__ import annotations

import math

from agentserving.contract.ids import ProgramKey, Tenant
from agentserving.contract.service_class import ServiceClass

from agentserving_engine.policy.footprint import Context, Footprint
from agentserving_engine.policy.residents import AGE_US, GROWTH, HOLD_US, Admitted, Calls, Kept, Tier, Waiting
from agentserving_engine.policy.retention import MAX_CONTEXTS, NEW_SHARE, Memory, Place


class WorkingSet:
    """The admitted programs of one engine. The caller keeps calls of others from starting."""

    def __init__(self, memory: Memory, calls: Calls) -> None:
        self._memory, self._calls = memory, calls
        self._footprint = Footprint(memory.blocks_of)
        self._programs: dict[str, ProgramKey] = {}
        self._admitted: dict[ProgramKey, Admitted] = {}
        self._waiting: dict[ProgramKey, Waiting] = {}
        # Contexts of running calls of displaced programs, by key.
        self._leaving: dict[str, Context] = {}
        # Calls of admitted programs whose contexts are not counted yet.
        self._joining: list[str] = []
        # When `admit` must look again although nothing happened, and whether something did.
        self._due_us: float = math.inf
        self._changed = False
        self._refreshed_at = 0

    # -- events --------------------------------------------------------------------------------------------------

    def call_arrived(self, key: str, program: ProgramKey, now_us: int) -> bool:
        """A call has arrived; whether its program is admitted."""
        self._changed = True
        self._programs[key] = program
        admitted = self._admitted.get(program)
        if admitted is None:
            self._waiting.setdefault(program, Waiting(now_us)).keys.add(key)
            return False
        admitted.open.add(key)
        self._joining.append(key)
        return True

    def adopt(self, key: str, program: ProgramKey, now_us: int) -> None:
        """A call is here already: its program is admitted without being asked."""
        if program not in self._admitted:
            place, kind = self._calls.place(key), self._calls.service_class(key)
            self._admitted[program] = Admitted(since_us=now_us, place=place, service_class=kind)
        self.call_arrived(key, program, now_us)

    def call_ended(self, key: str, place: Place, context: Context, until_us: int) -> None:
        """A call has ended with this context, which its program keeps until then."""
        program = self._programs.get(key)
        admitted = self._admitted.get(program) if program is not None else None
        if admitted is None or key not in admitted.open or key in self._leaving:
            return
        self._join()
        self._changed = True
        admitted.open.discard(key)
        admitted.aged = False
        admitted.place = place
        self._replace(admitted, key, tuple(context))
        admitted.contexts[key].until_us = until_us

    def call_gone(self, key: str) -> None:
        """A call has left the engine, whatever its end; after `call_ended`, if that is called."""
        program = self._programs.pop(key, None)
        if program is None:
            return
        self._changed = True
        if (leaving := self._leaving.pop(key, None)) is not None:
            self._footprint.drop(leaving)
        if (waiting := self._waiting.get(program)) is not None:
            waiting.keys.discard(key)
            if not waiting.keys:
                del self._waiting[program]
        if (admitted := self._admitted.get(program)) is not None and key in admitted.open:
            self._join()
            admitted.open.discard(key)
            admitted.aged = False
            self._drop(admitted, key)
            self._leave_if_empty(program, admitted)

    def program_ended(self, program: ProgramKey) -> None:
        """Nobody comes back to the program's contexts."""
        admitted = self._admitted.get(program)
        if admitted is None:
            return
        self._changed = True
        for key in [key for key in admitted.contexts if key not in admitted.open]:
            self._drop(admitted, key)
        self._leave_if_empty(program, admitted)

    # -- queries -------------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> int:
        """Distinct blocks of all contexts of admitted programs, and of running calls of displaced ones."""
        return self._footprint.blocks

    @property
    def admitted_contexts(self) -> list[Context]:
        """Contexts of admitted programs, of calls that are here and of those that have ended."""
        return [kept.context for admitted in self._admitted.values() for kept in admitted.contexts.values()]

    @property
    def admitted_programs(self) -> list[ProgramKey]:
        """Programs whose calls may start."""
        return list(self._admitted)

    @property
    def waiting_programs(self) -> list[ProgramKey]:
        """Programs with calls here that may not."""
        return list(self._waiting)

    @property
    def due_us(self) -> float:
        """When `admit` may change something although no call came or went; infinite when it cannot."""
        return self._due_us if self._waiting else math.inf

    # -- the decision --------------------------------------------------------------------------------------------

    def admit(self, now_us: int, tier: Tier) -> tuple[list[ProgramKey], list[ProgramKey]]:
        """(programs admitted now, programs displaced now). O(1) if nothing has changed."""
        # A preemption is no event: a call of a displaced program that was preempted must not count for ever.
        if not self._changed and now_us < self.due_us and all(map(self._calls.is_running, self._leaving)):
            return [], []
        self._changed = False
        self._join()
        self._forget_preempted(now_us)
        self._expire(now_us)
        displaced: list[ProgramKey] = []
        while self.blocks > GROWTH * tier.blocks and len(self._admitted) > 1:
            if self._released_soon() >= self.blocks - GROWTH * tier.blocks:
                break
            self._displace(self._worst(now_us), now_us, displaced)
        admitted: list[ProgramKey] = []
        aged = self._aged(now_us)
        for program in sorted(self._waiting, key=lambda program: self._order(program, program in aged)):
            is_aged = program in aged
            if program in displaced:
                break
            if self._passes(program, displaced):
                # In the next step: it comes before this one.
                self._changed = True
                break
            if not self._fits(program, now_us, tier, displaced, is_aged=is_aged):
                break
            self._give(program, now_us, is_aged=is_aged)
            admitted.append(program)
        self._due_us = self._next_us(now_us)
        return admitted, displaced

    def _aged(self, now_us: int) -> set[ProgramKey]:
        """Waiting programs that come first: of a class that waits behind a better one of its tenant one at a time."""
        since = {key: each.since_us for key, each in self._waiting.items() if now_us - each.since_us >= AGE_US}
        aged: set[ProgramKey] = set()
        if not since:
            return aged
        best: dict[Tenant, ServiceClass] = {}
        for program in (*self._admitted, *self._waiting):
            kind = self._class_of(program)
            best[program.tenant] = min(kind, best.get(program.tenant, kind))
        ahead = {(key.tenant, each.service_class) for key, each in self._admitted.items() if each.goes_first(now_us)}
        for program in sorted(since, key=lambda program: (since[program], program)):
            kind = self._class_of(program)
            if kind > best[program.tenant]:
                if (program.tenant, kind) in ahead:
                    continue
                ahead.add((program.tenant, kind))
            aged.add(program)
        return aged

    def _order(self, program: ProgramKey, is_aged: bool) -> tuple[float, ...]:
        waiting = self._waiting[program]
        if is_aged:
            return (0.0, waiting.since_us)
        return (1.0, *min(map(self._calls.order, waiting.keys)))

    def _passes(self, program: ProgramKey, displaced: list[ProgramKey]) -> bool:
        """A program that an aged one has displaced waits again and is of a better class: it comes before this one."""
        kind = self._class_of(program)
        again = [each for each in displaced if each.tenant == program.tenant and each in self._waiting]
        return any(self._class_of(each) < kind for each in again)

    def _fits(
        self, program: ProgramKey, now_us: int, tier: Tier, displaced: list[ProgramKey], *, is_aged: bool
    ) -> bool:
        """The program may be admitted. Displaces worse classes for that; an aged one displaces others as well, and
        waits for those that run."""
        need = self._footprint.missing(self._contexts(self._waiting[program]))
        if not (self._admitted or self._leaving) or self.blocks + need <= tier.blocks:
            return True
        if self._classes_give_way(program, tier.blocks - need, now_us, displaced):
            return True
        if not is_aged:
            return False
        for victim in [each for each in self._by_worth(now_us) if not self._is_safe(each, now_us)]:
            if self.blocks + need - self._released_soon() <= tier.blocks:
                break
            self._displace(victim, now_us, displaced)
        return not (self._admitted or self._leaving) or self.blocks + need <= tier.blocks

    def _classes_give_way(
        self, program: ProgramKey, most_blocks: int, now_us: int, displaced: list[ProgramKey]
    ) -> bool:
        """Without worse classes of its tenant the others have at most so many blocks, or there are no others.

        Displaces as many of them as that takes, the worst first, and none if it is not enough.
        """
        worse = self._worse_than(program, now_us)
        contexts = [kept.context for each in worse for kept in self._admitted[each].contexts.values()]
        remaining = len(self._admitted) - len(worse)
        if not self._has_room(program, most_blocks, contexts, remaining):
            return False
        while not self._has_room(program, most_blocks, [], len(self._admitted)):
            self._displace(worse.pop(0), now_us, displaced)
        return True

    def _has_room(self, program: ProgramKey, most_blocks: int, given: list[Context], remaining: int) -> bool:
        """Once these contexts and running calls of worse classes are gone; `remaining`: programs that stay admitted."""
        kind = self._class_of(program)
        yielding = [
            context
            for key, context in self._leaving.items()
            if self._programs[key].tenant == program.tenant and self._calls.service_class(key) > kind
        ]
        if not remaining and len(yielding) == len(self._leaving):
            return True
        return self.blocks - self._footprint.released([*yielding, *given]) <= most_blocks

    def _worse_than(self, program: ProgramKey, now_us: int) -> list[ProgramKey]:
        """Admitted programs that a better class may displace for this one, in that order: worst class first."""
        kind = self._class_of(program)
        worse = [
            each
            for each in self._by_worth(now_us)
            if each.tenant == program.tenant
            and self._admitted[each].service_class > kind
            and not self._admitted[each].goes_first(now_us)
        ]
        return sorted(worse, key=lambda each: -self._admitted[each].service_class)

    def _worst(self, now_us: int) -> ProgramKey:
        """The program that is displaced when contexts have grown."""
        worst = self._by_worth(now_us)[0]
        return next(iter(self._worse_than(worst, now_us)), worst)

    def _class_of(self, program: ProgramKey) -> ServiceClass:
        if (admitted := self._admitted.get(program)) is not None:
            return admitted.service_class
        return min(map(self._calls.service_class, self._waiting[program].keys))

    def _contexts(self, waiting: Waiting) -> list[Context]:
        return [self._calls.context(key) for key in sorted(waiting.keys)]

    def _released_soon(self) -> int:
        return self._footprint.released(self._leaving.values()) if self._leaving else 0

    def _is_safe(self, program: ProgramKey, now_us: int) -> bool:
        return now_us - self._admitted[program].since_us < HOLD_US

    def _by_worth(self, now_us: int) -> list[ProgramKey]:
        """Admitted programs in the order in which they are displaced: between calls, waiting, running; worst first.

        Those admitted a short time ago come last.
        """

        def worth(program: ProgramKey) -> tuple[bool, int, Place, ProgramKey]:
            admitted = self._admitted[program]
            running = any(map(self._calls.is_running, admitted.open))
            place = min(map(self._calls.place, admitted.open), default=admitted.place)
            return not self._is_safe(program, now_us), 0 if running else 1 if admitted.open else 2, place, program

        return sorted(self._admitted, key=worth, reverse=True)

    # -- changes -------------------------------------------------------------------------------------------------

    def _give(self, program: ProgramKey, now_us: int, *, is_aged: bool) -> None:
        kind = self._class_of(program)
        waiting = self._waiting.pop(program)
        place = min(map(self._calls.place, waiting.keys))
        admitted = self._admitted[program] = Admitted(since_us=now_us, place=place, service_class=kind, aged=is_aged)
        for key in sorted(waiting.keys):
            admitted.open.add(key)
            self._joining.append(key)
        self._join()

    def _displace(self, program: ProgramKey, now_us: int, displaced: list[ProgramKey]) -> None:
        """Its running calls run on, and count until they end; the others wait."""
        admitted = self._admitted.pop(program)
        displaced.append(program)
        for key, kept in admitted.contexts.items():
            if key in admitted.open and self._calls.is_running(key):
                self._leaving[key] = kept.context
                continue
            self._footprint.drop(kept.context)
            if key in admitted.open:
                self._waiting.setdefault(program, Waiting(now_us)).keys.add(key)

    def _join(self) -> None:
        """Counts the contexts of new calls of admitted programs; a call replaces the context that it continues."""
        joining, self._joining = self._joining, []
        for key in joining:
            program = self._programs.get(key)
            admitted = self._admitted.get(program) if program is not None else None
            if admitted is not None and key in admitted.open and key not in admitted.contexts:
                self._replace(admitted, key, tuple(self._calls.context(key)))

    def _replace(self, admitted: Admitted, key: str, context: Context) -> None:
        self._footprint.add(context)
        if key in admitted.contexts:
            self._drop(admitted, key)
        idle = [other for other, kept in admitted.contexts.items() if kept.until_us is not None]
        for other in idle:
            before = admitted.contexts[other].context
            common = self._memory.common(before, context)
            if len(before) - common <= NEW_SHARE * len(before) or len(admitted.contexts) >= MAX_CONTEXTS:
                self._drop(admitted, other)
        admitted.contexts[key] = Kept(context)

    def _drop(self, admitted: Admitted, key: str) -> None:
        kept = admitted.contexts.pop(key, None)
        if kept is not None:
            self._footprint.drop(kept.context)

    def _leave_if_empty(self, program: ProgramKey, admitted: Admitted) -> None:
        if not admitted.open and not admitted.contexts:
            del self._admitted[program]

    def _forget_preempted(self, now_us: int) -> None:
        """Calls of displaced programs that were preempted wait with their programs."""
        for key in [key for key in self._leaving if not self._calls.is_running(key)]:
            self._footprint.drop(self._leaving.pop(key))
            program = self._programs[key]
            if (admitted := self._admitted.get(program)) is not None:
                admitted.open.add(key)
                self._joining.append(key)
            else:
                self._waiting.setdefault(program, Waiting(now_us)).keys.add(key)
        self._join()

    def _expire(self, now_us: int) -> None:
        for program, admitted in list(self._admitted.items()):
            for key, kept in list(admitted.contexts.items()):
                if kept.until_us is not None and kept.until_us <= now_us:
                    self._drop(admitted, key)
            self._leave_if_empty(program, admitted)

    def _next_us(self, now_us: int) -> float:
        ends = [kept.until_us for each in self._admitted.values() for kept in each.contexts.values() if kept.until_us]
        ends += [waiting.since_us + AGE_US for waiting in self._waiting.values()]
        ends += [each.since_us + bound_us for each in self._admitted.values() for bound_us in (HOLD_US, AGE_US)]
        return min((end for end in ends if end > now_us), default=math.inf)

    # -- the engine's cache --------------------------------------------------------------------------------------

    def refresh(self, taken_blocks: int, free_blocks: int) -> None:
        """Moves the contexts of admitted programs away from eviction, the best last (Retention.refresh)."""
        if taken_blocks - self._refreshed_at < free_blocks // 16:
            return
        self._refreshed_at = taken_blocks
        for admitted in sorted(self._admitted.values(), key=lambda each: each.place, reverse=True):
            for kept in admitted.contexts.values():
                if kept.until_us is not None:
                    self._memory.refresh(kept.context, 0)
