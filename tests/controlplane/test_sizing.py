"""How many engines live programs need, by each signal."""

from __future__ import annotations

import pytest
from agentserving.contract.ids import EngineId
from agentserving_controlplane.engines.engine import Engine
from agentserving_controlplane.engines.facts import Capabilities, Load
from agentserving_controlplane.engines.health import Health
from agentserving_controlplane.engines.sizing import (
    LASTING_US,
    LastingWaits,
    Needed,
    Size,
    context_share,
    needed,
    size_of,
)
from agentserving_controlplane.table.live_demand import HORIZON_US, Signals
from hypothesis import given
from hypothesis import strategies as st

SIZE = Size(context_tokens=1000, calls=10)


def engine(name: str = "e", *, running: int = 0, waiting: int = 0, blocks: int = 10) -> Engine:
    return Engine(
        engine_id=EngineId(name), attached=True, address="a:1", health=Health.SERVING,
        capabilities=Capabilities(max_num_seqs=4, block_size=16, num_blocks=blocks),
        load=Load(running=running, waiting=waiting),
    )  # fmt: skip


def test_each_signal_is_in_full_engines() -> None:
    signals = Signals(calls=4, held_calls=1, context_tokens=2500, owed_us=5 * HORIZON_US)
    assert needed(signals, [], SIZE) == Needed(context=2.5, calls=0.5, service=0.5, waiting=0.0)


def test_before_an_engine_has_said_how_large_it_is_one_is_needed_for_any_call() -> None:
    assert needed(Signals(held_calls=5), [], Size()) == Needed(calls=1.0)
    assert needed(Signals(), [], Size()) == Needed()


def test_contexts_are_a_share_of_the_kv_caches_that_are_known() -> None:
    signals = Signals(context_tokens=2000, least_context_tokens=960)
    assert context_share(signals, [engine(blocks=10), engine(blocks=20)]) == 2.0
    assert context_share(signals, [engine(blocks=0)]) == context_share(signals, []) == 0.0


def test_a_size_is_remembered_while_there_is_no_engine() -> None:
    known = size_of([engine(blocks=10), engine(blocks=20)], Size())
    assert known == Size(context_tokens=240, calls=4)
    assert size_of([], known) == known


def waiting(*engines: Engine) -> float:
    return needed(Signals(calls=1), engines, SIZE).waiting


def test_engines_on_which_calls_wait_say_how_many_fit() -> None:
    # Two on each, so six need three; the engine in the middle has room and says nothing.
    assert waiting(engine(running=2, waiting=2), engine(running=1), engine(running=1)) == 3.0
    assert waiting(engine(running=4, waiting=4), engine(running=4, waiting=4)) == 4.0


@pytest.mark.parametrize(("running", "calls_waiting"), [(0, 0), (5, 0), (0, 3), (19, 1)])
def test_few_waiting_calls_say_nothing(running: int, calls_waiting: int) -> None:
    assert waiting(engine(running=running, waiting=calls_waiting)) == 0.0


def test_an_engine_that_takes_no_calls_does_not_count() -> None:
    stuck = engine(running=1, waiting=9)
    stuck.health = Health.STUCK
    assert waiting(stuck) == 0.0


def test_a_wait_counts_when_it_lasts_and_by_its_least() -> None:
    waits, second = LastingWaits(), 1_000_000
    assert waits.note(3.0, 0) == 0.0
    assert waits.note(5.0, LASTING_US - second) == 0.0
    assert waits.note(4.0, LASTING_US) == 3.0
    # What holds since the second look, however seldom anyone looks.
    assert waits.note(4.0, 3 * LASTING_US) == 4.0


def test_a_wait_that_ends_does_not_count_and_the_next_one_begins_from_there() -> None:
    waits = LastingWaits()
    for now_us, amount in ((0, 2.0), (LASTING_US // 2, 0.0), (LASTING_US, 2.0)):
        assert waits.note(amount, now_us) == 0.0
    assert waits.note(2.0, 2 * LASTING_US) == 2.0
    assert waits.note(0.0, 2 * LASTING_US + 1) == 0.0


@given(st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([0.0, 1.0, 2.5, 4.0])), min_size=4, max_size=40))
def test_what_lasts_is_the_least_of_the_window(steps: list[tuple[int, float]]) -> None:
    waits, now_us, noted = LastingWaits(), 0, list[tuple[int, float]]()
    for passed_s, amount in steps:
        now_us += passed_s * 1_000_000
        noted.append((now_us, amount))
        # The last one that had begun when the window did still held.
        begun = [at for at, _ in noted if at <= now_us - LASTING_US]
        expected = min(each for at, each in noted if at >= begun[-1]) if begun else 0.0
        assert waits.note(amount, now_us) == expected
