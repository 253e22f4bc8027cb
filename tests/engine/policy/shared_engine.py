"""An engine of slots that several tenants load at once, each with a way of its own to ask for more than its share."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field

from agentserving.contract.ids import Tenant
from agentserving.contract.policy import Policy
from agentserving.contract.service_class import ServiceClass
from agentserving_engine.policy import CallFacts, CallQueue, Room
from engine.policy.builders import program

STEP_US = 50_000


@dataclass
class Load:
    """What one tenant does: it keeps `calls` sequences in the engine, each of `steps`, by one program each."""

    tenant: str
    _: KW_ONLY
    calls: int
    steps: Callable[[random.Random], int]
    # A program id for each call: each begins at the best level.
    mints: bool = False
    # Sequences that one call becomes (n, a list of prompts): they arrive together, in one program.
    sequences: int = 1
    # Ends a running sequence with this probability in each step, and sends it again.
    ends: float = 0.0
    # Sends nothing from one step to another.
    idle: tuple[int, int] = (0, 0)
    classes: tuple[str, ...] = ("",)


@dataclass
class Call:
    load: Load
    number: int
    left: int


@dataclass
class SharedEngine:
    """`run` makes steps; `served` counts the steps of every running sequence by tenant."""

    policy: Policy
    slots: int
    loads: list[Load]
    weights: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    # Blocks that a sequence needs, and those of the engine.
    blocks: int = 1 << 30
    service_class: ServiceClass = ServiceClass.STANDARD

    def __post_init__(self) -> None:
        self.queue = CallQueue(self.policy)
        self.queue.tenants.set_weights({Tenant(name): weight for name, weight in self.weights.items()})
        self.random = random.Random(self.seed)
        self.calls: dict[str, Call] = {}
        self.now, self.step = 1, 0
        self.served: Counter[str] = Counter()
        self.preemptions = 0
        self._count = 0
        # Service attained by the programs of loads that do not mint.
        self._attained: Counter[tuple[str, int]] = Counter()
        self.idle_slots = 0

    def _arrive(self, load: Load, number: int) -> None:
        self._count += 1
        name = f"m{self._count}" if load.mints else f"p{number}"
        steps = load.steps(self.random)
        attained = 0 if load.mints else self._attained[load.tenant, number]
        for sequence in range(load.sequences):
            key = f"{load.tenant}/{self._count}/{sequence}"
            self.calls[key] = Call(load, number, steps)
            facts = CallFacts(
                key,
                program(name, load.tenant),
                attained_service_us=attained,
                program_arrival_us=self.now,
                class_name=self.random.choice(load.classes),
                service_class=self.service_class,
            )
            self.queue.arrive(facts, self.now)

    def _end(self, key: str) -> None:
        call = self.calls.pop(key)
        stats = self.queue.finish(key, self.now)
        assert stats is not None
        self._attained[call.load.tenant, call.number] += stats.service_us

    def _refill(self, step: int) -> None:
        for load in self.loads:
            if load.idle[0] <= step < load.idle[1]:
                for key in [key for key, call in self.calls.items() if call.load is load]:
                    self._end(key)
                continue
            present = Counter(call.number for call in self.calls.values() if call.load is load)
            for number in range(load.calls // load.sequences):
                if not present[number]:
                    self._arrive(load, number)

    def steps(self, count: int) -> Iterator[int]:
        """Runs, and gives the number of each step that is over."""
        for _ in range(count):
            self._refill(self.step)
            queue = self.queue
            room = Room(
                slots=self.slots,
                free_blocks=self.blocks - queue.running_count,
                need_blocks=lambda key: 1,
                returns_blocks=lambda key: 1,
            )
            preempted = queue.decide(self.now, room).preempt
            for key in preempted:
                queue.preempt(key, self.now)
            self.preemptions += len(preempted)
            while queue.running_count < self.slots and (key := queue.best_waiting()) is not None:
                queue.start(key, self.now)
            running = queue.running_keys
            if queue.waiting_count:
                self.idle_slots += self.slots - len(running)
            self.now += STEP_US
            queue.charge_tenants(STEP_US)
            queue.charge(running, STEP_US)
            # As the engine session does: levels see what the whole call receives.
            together = Counter(key.rpartition("/")[0] for key in running)
            for key in running:
                queue.charge([key], STEP_US * (together[key.rpartition("/")[0]] - 1))
            for key in running:
                call = self.calls[key]
                call.left -= 1
                self.served[call.load.tenant] += 1
                if call.left <= 0 or self.random.random() < call.load.ends:
                    self._end(key)
            self.step += 1
            yield self.step

    def run(self, count: int) -> Counter[str]:
        """Runs so many steps; gives what each tenant was served in them."""
        before = self.served.copy()
        for _ in self.steps(count):
            pass
        return self.served - before
