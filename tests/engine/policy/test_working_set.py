"""Whole programs are admitted while their contexts fit; nobody waits for ever, and admitted contexts stay bounded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from agentserving.contract.ids import ProgramKey
from agentserving.contract.service_class import ServiceClass
from agentserving_engine.policy.footprint import Footprint
from agentserving_engine.policy.levels import BANDS
from agentserving_engine.policy.residents import AGE_US, GROWTH, HOLD_US, HOST_SHARE, Calls, Tier
from agentserving_engine.policy.working_set import WorkingSet
from engine.policy.builders import program
from engine.policy.test_retention import Blocks
from hypothesis import given, settings
from hypothesis import strategies as st

SECOND = 1_000_000
TIER = Tier(blocks=100, lease_us=100 * SECOND)
Context = tuple[object, ...]


def context(name: str, blocks: int, shared: int = 0) -> Context:
    """A context whose first `shared` blocks all programs have."""
    return (*(("system", at) for at in range(shared)), *((name, at) for at in range(shared, blocks)))


@dataclass
class Waiting:
    name: str
    context: Context
    arrived_us: int
    ends_us: int = 0


class House:
    """A working set and the calls around it: those of admitted programs run, once `start` is called."""

    def __init__(self, tier: Tier = TIER) -> None:
        self.tier, self.now_us, self.count = tier, 0, 0
        self.calls: dict[str, Waiting] = {}
        self.running: set[str] = set()
        # Programs that the last `admit` displaced.
        self.displaced: list[ProgramKey] = []
        self.places: dict[str, tuple[int, int]] = {}
        # By program; STANDARD where nothing is said.
        self.classes: dict[str, ServiceClass] = {}
        self.set = WorkingSet(
            Blocks(),
            Calls(
                context=lambda key: self.calls[key].context,
                place=lambda key: self.place(self.calls[key].name),
                order=lambda key: (*self.place(self.calls[key].name), self.calls[key].arrived_us),
                is_running=lambda key: key in self.running,
                service_class=lambda key: self.class_of(self.calls[key].name),
            ),
        )

    def class_of(self, name: str) -> ServiceClass:
        return self.classes.get(name, ServiceClass.STANDARD)

    def place(self, name: str) -> tuple[int, int]:
        """As `CallQueue.place`: a better class first."""
        rank, arrival = self.places.get(name, (0, 0))
        return BANDS[self.class_of(name)] + rank, arrival

    def arrive(self, name: str, blocks: int, shared: int = 0) -> str:
        """A call of a program; a name TENANT:NAME is of that tenant."""
        self.count += 1
        key = f"{name}/{self.count}"
        self.calls[key] = Waiting(name, context(name, blocks, shared), self.now_us)
        self.set.call_arrived(key, self.program(name), self.now_us)
        return key

    def program(self, name: str) -> ProgramKey:
        return program(name, name.partition(":")[0] if ":" in name else "default")

    def end_of(self, name: str, blocks: int) -> None:
        """A program is admitted, and its call ends: it keeps its place for a lease."""
        key = self.arrive(name, blocks)
        assert name in self.admit()
        self.end(key)

    def admit(self, after_s: float = 0.0) -> set[str]:
        """Time passes; the programs that are admitted then."""
        self.now_us += int(after_s * SECOND)
        _, self.displaced = self.set.admit(self.now_us, self.tier)
        return {key.program_id for key in self.set.admitted_programs}

    def end(self, key: str, *, keeps: bool = True) -> None:
        call = self.calls[key]
        if keeps:
            self.set.call_ended(key, self.place(call.name), call.context, self.now_us + self.tier.lease_us)
        self.running.discard(key)
        del self.calls[key]
        self.set.call_gone(key)


def distinct(contexts: Sequence[Sequence[object]]) -> int:
    return len({block for each in contexts for block in each})


def test_programs_are_admitted_in_order_while_they_fit_and_nobody_passes_the_first_that_does_not() -> None:
    house = House()
    house.places = {"a": (0, 1), "b": (0, 2), "c": (1, 1), "d": (1, 2)}
    for name, blocks in (("d", 5), ("c", 60), ("b", 30), ("a", 40)):
        house.arrive(name, blocks)
    assert house.admit() == {"a", "b"}


def test_blocks_that_programs_share_count_once() -> None:
    house = House()
    for name in ("a", "b", "c"):
        house.arrive(name, 60, shared=45)
    assert house.admit() == {"a", "b", "c"}
    assert house.set.blocks == 45 + 3 * 15


def test_a_program_keeps_its_place_between_calls_for_the_time_that_filling_the_cache_takes() -> None:
    house = House()
    first = house.arrive("a", 70)
    house.admit()
    house.end(first)
    house.arrive("b", 60)
    assert house.admit(99) == {"a"}
    assert house.set.due_us == 100 * SECOND
    assert house.admit(1) == {"b"}


def test_a_program_that_ended_gives_its_place_up_at_once() -> None:
    house = House()
    first = house.arrive("a", 70)
    house.admit()
    house.end(first)
    house.arrive("b", 60)
    assert house.admit() == {"a"}
    house.set.program_ended(program("a"))
    assert house.admit() == {"b"}
    assert house.set.blocks == 60


def test_a_call_that_was_aborted_leaves_nothing() -> None:
    house = House()
    key = house.arrive("a", 70)
    house.admit()
    house.end(key, keeps=False)
    assert house.admit() == set()
    assert house.set.blocks == 0


def test_the_next_call_replaces_the_context_that_it_continues() -> None:
    house = House()
    first = house.arrive("a", 50)
    house.admit()
    house.end(first)
    house.arrive("a", 55)
    house.admit()
    assert house.set.blocks == 55
    assert len(house.set.admitted_contexts) == 1


def test_a_better_level_displaces_nobody() -> None:
    house = House()
    house.places = {"old": (7, 1), "new": (0, 2)}
    house.arrive("old", 70)
    house.admit()
    house.arrive("new", 70)
    assert house.admit(AGE_US / SECOND - 1) == {"old"}


def test_contexts_that_outgrow_the_cache_displace_the_worst_program() -> None:
    house = House()
    house.places = {"a": (0, 1), "b": (1, 1)}
    firsts = [house.arrive(name, 48) for name in ("a", "b")]
    assert house.admit() == {"a", "b"}
    for key in firsts:
        house.end(key)
    house.arrive("a", 58)
    assert house.admit() == {"a", "b"}, "within 1.15 times the cache"
    house.arrive("a", 68)
    assert house.admit() == {"a"}


def test_a_program_larger_than_the_cache_runs_alone() -> None:
    house = House()
    house.arrive("a", 300)
    house.arrive("b", 10)
    assert house.admit() == {"a"}


def test_an_aged_program_displaces_others_but_waits_for_their_running_calls() -> None:
    house = House()
    house.places = {"a": (0, 1), "b": (5, 1)}
    running = house.arrive("a", 70)
    house.admit()
    house.running.add(running)
    house.arrive("b", 60)
    assert house.admit(AGE_US / SECOND) == set(), "a may start no further call"
    house.arrive("a", 70)
    assert house.admit() == set()
    house.end(running)
    assert house.admit() == {"b"}


def test_calls_that_are_here_already_are_adopted_with_their_programs() -> None:
    house = House()
    for name in ("a", "b"):
        house.calls[name] = Waiting(name, context(name, 80), 0)
        house.set.adopt(name, program(name), 0)
    assert {key.program_id for key in house.set.admitted_programs} == {"a", "b"}
    assert len(house.admit()) == 1, "too much for both"


def test_host_memory_bounds_where_it_is_larger_than_the_cache() -> None:
    assert Tier.of(100, 0, 1.0).blocks == Tier.of(100, 50, 1.0).blocks == 100
    assert Tier.of(100, 1000, 7.0) == Tier(blocks=int(HOST_SHARE * 1000), lease_us=7000)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(2, 8), st.integers(20, 400))
def test_nobody_starves_and_admitted_contexts_stay_bounded(seed: int, programs: int, longest_s: int) -> None:
    """The bounds in the module's docstring, for any programs: the n-th aged one waits AGE_US + n (HOLD_US + D)."""
    rng, tick_s = random.Random(seed), 60
    house = House(Tier(blocks=20, lease_us=100 * SECOND))
    bound_us = AGE_US + programs * (HOLD_US + (longest_s + 2 * tick_s) * SECOND)
    names = [f"p{number}" for number in range(programs)]
    house.places = {name: (rng.randrange(4), at) for at, name in enumerate(names)}
    for _ in range(200):
        for name in names:
            if rng.random() < 0.5 and sum(call.name == name for call in house.calls.values()) < 2:
                house.arrive(name, rng.choice((1, 6, 12, 19)), shared=1)
        admitted = house.admit(tick_s)
        assert distinct(house.set.admitted_contexts) <= GROWTH * house.tier.blocks or len(admitted) == 1
        assert house.set.blocks >= distinct(house.set.admitted_contexts)
        for key in [key for key in house.running if house.calls[key].ends_us <= house.now_us]:
            house.end(key, keeps=rng.random() < 0.8)
        if rng.random() < 0.05 and house.running:
            house.running.discard(rng.choice(sorted(house.running)))
        for key, call in house.calls.items():
            if call.name in admitted and key not in house.running:
                house.running.add(key)
                call.ends_us = house.now_us + rng.randrange(1, longest_s + 1) * SECOND
            elif call.name not in admitted and key not in house.running:
                assert house.now_us - call.arrived_us <= bound_us
            if call.name in admitted:
                call.arrived_us = house.now_us
    ended = house.set
    for key in list(house.calls):
        house.end(key, keeps=False)
    for name in names:
        ended.program_ended(program(name))
    assert (ended.blocks, ended.admitted_programs, ended.waiting_programs) == (0, [], [])


@given(st.lists(st.lists(st.integers(0, 20), max_size=8), max_size=8), st.data())
def test_a_footprint_is_the_number_of_distinct_blocks(contexts: list[list[int]], data: st.DataObject) -> None:
    footprint = Footprint(lambda unit: 1)
    known = [tuple(dict.fromkeys(each)) for each in contexts]
    for number, each in enumerate(known):
        assert footprint.missing([each]) == distinct(known[: number + 1]) - distinct(known[:number])
        footprint.add(each)
    assert footprint.blocks == distinct(known)
    gone = data.draw(st.integers(0, len(known)))
    assert footprint.released(known[:gone]) == distinct(known) - distinct(known[gone:])
    for each in known[:gone]:
        footprint.drop(each)
    assert footprint.blocks == distinct(known[gone:])
