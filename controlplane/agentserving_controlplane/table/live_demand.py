"""What live programs need of engines: context, calls, service. The signals that autoscaling acts on. Pure.

A program here is a tree: a root with its sub-agents. Everything is a sum that is kept up to date as calls come and go,
so a reading costs what has expired since the last one, however many programs there are.

- Its *context* is what its calls in flight and its last call take in an engine's KV cache. It counts while calls are in
  flight and for KEEP_US after the last one, because the next call reads it again (Denning's working set). Prefixes that
  programs share count for each of them: prompts are not read here.
- The service that it is still *owed* within HORIZON_US is predicted from finished programs of its class: the mean
  of what those had left that had received more, at the pace at which programs of the class ask for service.
- A call is *held* while a gateway waits for an engine to take it. The gateway asks again every second.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from agentserving.contract.ids import CallId, EngineId, ProgramKey

# How long a context counts after its program's last call. Of 346 coding sessions, 90 % of the next calls come earlier.
KEEP_US = 120_000_000
# Service is predicted for this time from now: engines take about as long to start.
HORIZON_US = 60_000_000
# A held call that its gateway has not asked for again within this time is gone.
HELD_US = 5_000_000
MAX_HELD = 10_000
# Newest finished programs of a class; and classes, of which the least recently used are dropped.
MAX_SAMPLES, MAX_CLASSES = 200, 64
# With fewer, expect as much service again as a program has had.
MIN_SAMPLES = 10
# Share of the time that a program asks for service, until its class has finished programs.
UNKNOWN_PACE = 1.0
# Weight of the newest finished program in a class's pace.
SMOOTHING = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What live programs need at one moment. Tokens are of contexts, microseconds of service."""

    # Trees whose context counts.
    programs: int = 0
    calls: int = 0
    context_tokens: int = 0
    # If the calls in flight of a tree share their prompts, as a fork does: each tree counts one of its calls.
    least_context_tokens: int = 0
    # Within HORIZON_US.
    owed_us: int = 0
    held_calls: int = 0
    held_programs: int = 0
    # Context that would have to be computed again if an engine went, and the trees that it is of.
    kept_tokens: Mapping[EngineId, int] = field(default_factory=dict)
    kept_programs: Mapping[EngineId, int] = field(default_factory=dict)


class Finished:
    """Finished programs of one class."""

    def __init__(self) -> None:
        self._order: deque[int] = deque()
        self._sorted: list[int] = []
        # Sums of the sorted services, from each one to the end; empty when they have changed.
        self._tails: list[int] = []
        self._pace = UNKNOWN_PACE

    def add(self, service_us: int, busy_us: int) -> None:
        """One more: the service it had, and its life without the time that it waited in queues."""
        if len(self._order) == MAX_SAMPLES:
            self._sorted.pop(bisect_right(self._sorted, self._order.popleft()) - 1)
        self._order.append(service_us)
        insort(self._sorted, service_us)
        self._tails = []
        pace = service_us / max(busy_us, service_us, 1)
        self._pace = pace if len(self._order) == 1 else self._pace + SMOOTHING * (pace - self._pace)

    def left_us(self, service_us: int) -> int:
        """Mean service that a program of this class has left, after it has had so much."""
        if len(self._order) < MIN_SAMPLES:
            return service_us
        index = bisect_right(self._sorted, service_us)
        longer = len(self._sorted) - index
        if not longer:
            return service_us
        if not self._tails:
            self._tails = list(accumulate(reversed(self._sorted)))
        return self._tails[longer - 1] // longer - service_us

    def owed_us(self, service_us: int) -> int:
        """Of that, what it asks for within HORIZON_US."""
        return min(self.left_us(service_us), int(HORIZON_US * self._pace))


@dataclass(slots=True)
class _Tree:
    class_name: str
    opened_us: int
    heard_us: int = 0
    # Calls in flight, and the tokens of their prompts.
    calls: int = 0
    prompt_tokens: int = 0
    # Context of its last call, and the engine that has it.
    kept_tokens: int = 0
    engine_id: EngineId = EngineId("")
    service_us: int = 0
    wait_us: int = 0
    owed_us: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of context that the tree has in KV caches."""
        return max(self.kept_tokens, self.prompt_tokens)

    @property
    def least_tokens(self) -> int:
        """The same if its calls in flight share their prompts: that of a mean one."""
        return max(self.kept_tokens, self.prompt_tokens // self.calls if self.calls else 0)


@dataclass(slots=True)
class _Held:
    program: ProgramKey | None
    tokens: int
    heard_us: int


class LiveDemand:
    """Changed by the process table as calls begin and end. Times are steady microseconds."""

    def __init__(self) -> None:
        # The tree that was heard of last comes last.
        self._trees: OrderedDict[ProgramKey, _Tree] = OrderedDict()
        # Of calls in flight: the tokens they were counted with.
        self._calls: dict[CallId, int] = {}
        self._classes: OrderedDict[str, Finished] = OrderedDict()
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self._tokens = self._least_tokens = self._owed_us = 0
        # Of one call: no engine takes a longer one, whatever its sender estimates. 0 = not known.
        self.most_tokens = 0
        self._kept_tokens: dict[EngineId, int] = {}
        self._kept_programs: dict[EngineId, int] = {}

    # -- events --------------------------------------------------------------------------------------------------

    def call_began(
        self, root: ProgramKey, class_name: str, call_id: CallId, engine_id: EngineId, tokens: int, now_us: int
    ) -> None:
        """A call is in flight; `tokens` of prompt, an estimate, 0 = unknown: that of the program's last context."""
        tree = self._trees.get(root)
        if tree is None:
            tree = self._trees[root] = _Tree(class_name, now_us, engine_id=engine_id)
        else:
            self._leave(tree)
            self._trees.move_to_end(root)
        self._calls[call_id] = tokens = self._plausible(tokens) or tree.kept_tokens
        tree.heard_us, tree.engine_id = now_us, engine_id
        tree.calls += 1
        tree.prompt_tokens += tokens
        self._enter(tree)

    def call_ended(
        self, root: ProgramKey, call_id: CallId, engine_id: EngineId, tokens: int, service_us: int, wait_us: int,
        now_us: int,
    ) -> None:  # fmt: skip
        """A call has left a context of so many tokens on the engine; 0 = it never ran."""
        counted, tree = self._calls.pop(call_id, None), self._trees.get(root)
        if counted is None or tree is None:
            return
        self._leave(tree)
        self._trees.move_to_end(root)
        tree.heard_us = now_us
        tree.calls -= 1
        tree.prompt_tokens -= counted
        tree.service_us += service_us
        tree.wait_us += wait_us
        if tokens:
            tree.kept_tokens, tree.engine_id = tokens, engine_id
        self._enter(tree)

    def program_ended(self, root: ProgramKey, now_us: int, *, is_whole: bool) -> None:
        """Nobody comes back to its context; `is_whole`: it has had all the service that it wanted."""
        tree = self._trees.get(root)
        if tree is None:
            return
        if is_whole:
            self._class(tree.class_name).add(tree.service_us, now_us - tree.opened_us - tree.wait_us)
        self._leave(tree)
        if tree.calls:
            tree.kept_tokens = 0
            self._enter(tree)
        else:
            del self._trees[root]

    def call_held(self, hold_id: int, program: ProgramKey | None, tokens: int, now_us: int) -> None:
        """No engine can take a call, and its gateway holds it. Beyond MAX_HELD the ones asked for last count."""
        self._held[hold_id] = _Held(program, self._plausible(tokens), now_us)
        self._held.move_to_end(hold_id)
        if len(self._held) > MAX_HELD:
            self._held.popitem(last=False)

    def call_released(self, hold_id: int) -> None:
        """An engine has taken a held call."""
        self._held.pop(hold_id, None)

    # -- reading -------------------------------------------------------------------------------------------------

    def signals(self, now_us: int) -> Signals:
        """What is needed now."""
        self._expire(now_us)
        programs = {each.program for each in self._held.values() if each.program is not None}
        nameless = sum(each.program is None for each in self._held.values())
        return Signals(
            programs=len(self._trees),
            calls=len(self._calls),
            context_tokens=self._tokens + sum(each.tokens for each in self._held.values()),
            least_context_tokens=self._least_tokens,
            owed_us=self._owed_us,
            held_calls=len(self._held),
            held_programs=len(programs) + nameless,
            kept_tokens=dict(self._kept_tokens),
            kept_programs=dict(self._kept_programs),
        )

    def _expire(self, now_us: int) -> None:
        while self._held and next(iter(self._held.values())).heard_us + HELD_US <= now_us:
            self._held.popitem(last=False)
        while self._trees:
            root, tree = next(iter(self._trees.items()))
            if tree.heard_us + KEEP_US > now_us:
                break
            if tree.calls:
                # A long call; its end is heard.
                tree.heard_us = now_us
                self._trees.move_to_end(root)
            else:
                self._leave(tree)
                del self._trees[root]

    def _plausible(self, tokens: int) -> int:
        return min(tokens, self.most_tokens) if self.most_tokens else tokens

    # -- sums ----------------------------------------------------------------------------------------------------

    def _class(self, name: str) -> Finished:
        known = self._classes.get(name)
        if known is None:
            known = self._classes[name] = Finished()
            if len(self._classes) > MAX_CLASSES:
                self._classes.popitem(last=False)
        else:
            self._classes.move_to_end(name)
        return known

    def _enter(self, tree: _Tree) -> None:
        """Adds a tree to the sums."""
        known = self._classes.get(tree.class_name)
        tree.owed_us = known.owed_us(tree.service_us) if known is not None else min(tree.service_us, HORIZON_US)
        self._tokens += tree.tokens
        self._least_tokens += tree.least_tokens
        self._owed_us += tree.owed_us
        self._kept_tokens[tree.engine_id] = self._kept_tokens.get(tree.engine_id, 0) + tree.tokens
        self._kept_programs[tree.engine_id] = self._kept_programs.get(tree.engine_id, 0) + 1

    def _leave(self, tree: _Tree) -> None:
        """Inverse of `_enter`, before a tree changes."""
        self._tokens -= tree.tokens
        self._least_tokens -= tree.least_tokens
        self._owed_us -= tree.owed_us
        self._kept_tokens[tree.engine_id] -= tree.tokens
        self._kept_programs[tree.engine_id] -= 1
        if not self._kept_programs[tree.engine_id]:
            del self._kept_tokens[tree.engine_id], self._kept_programs[tree.engine_id]
