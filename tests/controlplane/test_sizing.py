"""How many engines live programs need, by each signal."""

from __future__ import annotations

import pytest
from agentserving.contract.ids import EngineId
from agentserving_controlplane.engines.engine import Engine
from agentserving_controlplane.engines.facts import Capabilities, Load
from agentserving_controlplane.engines.health import Health
from agentserving_controlplane.engines.sizing import Needed, Size, needed, size_of
from agentserving_controlplane.table.live_demand import HORIZON_US, Signals

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
