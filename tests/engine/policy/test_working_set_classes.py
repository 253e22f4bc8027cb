"""The working set and classes of service: a better class of a tenant takes places, and a worse one is not starved."""

from __future__ import annotations

import random
from collections.abc import Iterator

from agentserving.contract.service_class import SERVICE_CLASSES, ServiceClass
from agentserving_engine.policy.residents import AGE_US, HOLD_US, Tier
from engine.policy.test_working_set import SECOND, House, distinct
from hypothesis import given, settings
from hypothesis import strategies as st

INTERACTIVE, STANDARD, BATCH = SERVICE_CLASSES
HOUR_S = AGE_US // SECOND


def house(**classes: ServiceClass) -> House:
    made = House()
    made.classes = classes
    return made


def test_a_better_class_displaces_a_worse_one_of_its_tenant() -> None:
    made = house(job=BATCH, chat=INTERACTIVE)
    made.end_of("job", 70)
    made.arrive("chat", 70)
    assert made.admit() == {"chat"}
    made.arrive("job", 70)
    assert made.admit(HOUR_S - 1) == {"chat"}


def test_the_worst_class_is_displaced_first_and_no_more_than_it_takes() -> None:
    made = house(job=BATCH, other=BATCH, chat=INTERACTIVE)
    made.places = {"job": (0, 1), "other": (0, 2)}
    for name, blocks in (("work", 30), ("job", 30), ("other", 30)):
        made.end_of(name, blocks)
    made.arrive("chat", 35)
    assert made.admit() == {"work", "job", "chat"}
    made.arrive("chat", 75)
    assert made.admit() == {"work", "chat"}, "grown to 1.15 times the cache: the batch program leaves, idle or not"


def test_programs_are_not_displaced_unless_that_makes_room() -> None:
    made = house(work=INTERACTIVE, job=BATCH, chat=INTERACTIVE)
    made.end_of("work", 60)
    made.end_of("job", 30)
    made.arrive("chat", 50)
    assert made.admit() == {"work", "job"}


def test_a_better_class_does_not_wait_for_running_calls_of_a_worse_one() -> None:
    """They give way to its calls in the queue; those of its own class do not."""
    made = house(job=BATCH, chat=INTERACTIVE)
    made.running.add(made.arrive("job", 70))
    assert made.admit() == {"job"}
    made.arrive("chat", 70)
    assert made.admit() == {"chat"}
    assert made.set.blocks == 140
    made.classes["late"] = INTERACTIVE
    made.arrive("late", 40)
    assert made.admit() == {"chat"}


def test_classes_order_the_programs_of_one_tenant_only() -> None:
    made = house(**{"acme:job": BATCH, "globex:chat": INTERACTIVE})
    made.end_of("acme:job", 70)
    made.arrive("globex:chat", 70)
    assert made.admit(HOUR_S / 40) == {"acme:job"}


def test_an_aged_program_keeps_its_place_until_one_of_its_calls_ends() -> None:
    made = house(job=BATCH, chat=INTERACTIVE, other=INTERACTIVE)
    made.arrive("chat", 70)
    made.admit()
    job = made.arrive("job", 70)
    assert made.admit(HOUR_S) == {"job"}
    made.arrive("other", 70)
    assert made.admit(2 * HOLD_US / SECOND) == {"job"}
    made.end(job)
    assert "job" not in made.admit()


def test_a_flood_of_batch_that_has_aged_takes_one_place_at_a_time() -> None:
    made = house(chat=INTERACTIVE, other=INTERACTIVE, **{f"job{at}": BATCH for at in range(9)})
    chat = made.arrive("chat", 60)
    made.admit()
    jobs = {f"job{at}": made.arrive(f"job{at}", 45) for at in range(9)}
    assert made.admit(HOUR_S) == {"job0"}
    made.end(chat)
    made.arrive("other", 50)
    assert made.admit() == {"job0", "other"}
    made.end(jobs["job0"])
    made.set.program_ended(made.program("job0"))
    assert made.admit(HOUR_S) == {"other", "job1"}


# -- properties ----------------------------------------------------------------------------------------------------


class Busy:
    """A random load on a house: programs of all classes, calls that run once their program is admitted."""

    def __init__(self, seed: int, names: int, tenants: int = 1, only: ServiceClass | None = None) -> None:
        self.dice = random.Random(seed)
        self.house = House(Tier(blocks=20, lease_us=100 * SECOND))
        self.names = [f"t{at % tenants}:p{at}" for at in range(names)]
        for at, name in enumerate(self.names):
            drawn = self.dice.choice(SERVICE_CLASSES)
            self.house.classes[name] = only or drawn
            self.house.places[name] = (self.dice.randrange(4), at)

    def ticks(self, count: int, tick_s: int = 60) -> Iterator[set[str]]:
        """The admitted programs after each tick."""
        made, dice = self.house, self.dice
        for _ in range(count):
            for name in self.names:
                if dice.random() < 0.4 and sum(call.name == name for call in made.calls.values()) < 2:
                    made.arrive(name, dice.choice((1, 6, 12, 19)), shared=1)
            # An aborted call: displaced programs are looked at again with the next event only.
            made.end(made.arrive(self.names[0], 1), keeps=False)
            admitted = made.admit(tick_s)
            yield admitted
            for key in [key for key in made.calls if key in made.running and dice.random() < 0.5]:
                made.end(key, keeps=dice.random() < 0.8)
            made.running |= {key for key, call in made.calls.items() if call.name in admitted}
            made.running -= {key for key in sorted(made.running) if dice.random() < 0.05}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(2, 9), st.sampled_from(SERVICE_CLASSES))
def test_programs_of_one_class_are_admitted_as_if_there_were_no_classes(
    seed: int, names: int, kind: ServiceClass
) -> None:
    assert list(Busy(seed, names, only=kind).ticks(80)) == list(Busy(seed, names, only=STANDARD).ticks(80))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(2, 9), st.integers(1, 2))
def test_the_first_program_waits_for_no_worse_class_of_its_tenant(seed: int, names: int, tenants: int) -> None:
    """Without the worse classes of its tenant there would be no room for it, either."""
    busy = Busy(seed, names, tenants)
    made = busy.house
    for _ in busy.ticks(40):
        if made.now_us >= AGE_US:
            break
        waiting = {call.name for call in made.calls.values()} - {key.program_id for key in made.set.admitted_programs}
        if made.displaced or made.set._leaving or not waiting:
            continue
        calls = {name: [call for call in made.calls.values() if call.name == name] for name in waiting}
        first = min(waiting, key=lambda name: min((*made.place(name), call.arrived_us) for call in calls[name]))
        others = [
            kept.context
            for key, admitted in made.set._admitted.items()
            if key.tenant != made.program(first).tenant or admitted.service_class <= made.class_of(first)
            for kept in admitted.contexts.values()
        ]
        assert others, f"{first} waits for worse classes alone"
        assert distinct([*others, *(call.context for call in calls[first])]) > made.tier.blocks


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 3), st.sampled_from([STANDARD, BATCH]))
def test_a_worse_class_is_served_although_better_programs_fill_the_cache_for_ever(
    seed: int, jobs: int, kind: ServiceClass
) -> None:
    """Each ends a call within AGE_US and, for itself and each before it, HOLD_US and two of the longest calls."""
    dice, tick_s, longest_s = random.Random(seed), 60, 300
    made = House(Tier(blocks=20, lease_us=100 * SECOND))
    ends: dict[str, int] = {}
    made.classes = {f"chat{at}": INTERACTIVE for at in range(6)} | {f"job{at}": kind for at in range(jobs)}
    left = {made.arrive(f"job{at}", 15) for at in range(jobs)}
    bound_us = AGE_US + jobs * (HOLD_US + 2 * (longest_s + 2 * tick_s) * SECOND)
    while left:
        for at in range(6):
            if not any(call.name == f"chat{at}" for call in made.calls.values()):
                made.arrive(f"chat{at}", dice.choice((9, 12)))
        admitted = made.admit(tick_s)
        running = [key for key, call in made.calls.items() if call.name in admitted and key not in made.running]
        for key in running:
            made.running.add(key)
            ends[key] = made.now_us + dice.randrange(1, longest_s + 1) * SECOND
        assert sum(name.startswith("job") for name in admitted) <= 1
        for key in [key for key in made.running if ends[key] <= made.now_us]:
            made.end(key)
            left.discard(key)
        assert made.now_us <= bound_us, f"{sorted(left)} still wait"
