"""What a round of upkeep costs: it looks at what is due and what has changed, not at every row and engine."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving_controlplane.engines import registry
from agentserving_controlplane.engines.engine import Engine
from agentserving_controlplane.engines.registry import EngineRegistry
from agentserving_controlplane.instant import Instant
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.states import Outcome
from controlplane.engine_builders import attached
from controlplane.table_builders import S, admit, at, end, key, limits, open_program

LIMITS = limits(idle_s=100, call_idle_s=50, retention_s=30)


class CountingTable(ProcessTable):
    """Counts the rows that upkeep looks at."""

    def __init__(self, epoch: int) -> None:
        super().__init__(epoch)
        self.looks, limit_us = 0, self.expiring._limit_us

        def counted(*args: Any) -> int | None:
            self.looks += 1
            return limit_us(*args)

        self.expiring._limit_us = counted  # type: ignore[method-assign]


def upkeep(table: CountingTable, now: Instant) -> int:
    """Looks of one round; expired rows are removed or closed."""
    before = table.looks
    while (call_id := table.expiring.silent_call(LIMITS, now)) is not None:
        end(table, call_id.split(".")[0], call_id, now=now.steady_us)
    table.expiring.schedule_marked(LIMITS, 10**9)
    for row in table.expiring.take_due(LIMITS, now, 10**9)[1]:
        table.expiring.expire(row, LIMITS, now)
    return table.looks - before


@pytest.mark.parametrize("programs", [100, 10_000])
def test_a_round_looks_at_the_programs_that_changed_and_not_at_the_others(programs: int) -> None:
    table = CountingTable(1)
    for number in range(programs):
        open_program(table, f"p{number}")
    upkeep(table, at(0))
    assert upkeep(table, at(S)) == 0
    for number in range(5):
        admit(table, f"p{number}", now=2 * S)
    assert upkeep(table, at(3 * S)) <= 5


def test_a_program_is_looked_at_once_an_idle_time_however_many_calls_it_makes() -> None:
    table = CountingTable(1)
    open_program(table, "busy")
    looks = 0
    for second in range(1000):
        call = admit(table, "busy", now=second * S)
        end(table, "busy", call.call_id, now=second * S)
        looks += upkeep(table, at(second * S)) - 1
    # Besides the one look at what has changed; each time that has come is looked at, and the row scheduled again.
    assert looks <= 2 * 1000 // 100 + 2
    assert upkeep(table, at(1101 * S))
    assert not table.index.live.total


def test_a_paused_tree_expires_when_it_has_been_resumed() -> None:
    table = CountingTable(1)
    root = open_program(table, "root")
    open_program(table, "child", parent="root")
    table.programs.pause(root, True)
    upkeep(table, at(200 * S))
    upkeep(table, at(400 * S))
    assert table.index.live.total == 2
    table.programs.pause(root, False)
    upkeep(table, at(401 * S))
    assert not table.index.live.total


def test_a_parent_is_forgotten_after_its_last_child() -> None:
    table = CountingTable(1)
    rows = [open_program(table, "root"), open_program(table, "child", parent="root")]
    table.programs.close(rows[0], Outcome.COMPLETED, at(0))
    upkeep(table, at(50 * S))
    table.programs.close(rows[1], Outcome.COMPLETED, at(60 * S))
    upkeep(table, at(61 * S))
    assert len(table.rows) == 2
    upkeep(table, at(91 * S))
    assert list(table.rows) == [key("root")]
    upkeep(table, at(92 * S))
    assert not table.rows


def test_silent_calls_expire_in_the_order_in_which_they_were_heard_last() -> None:
    table = CountingTable(1)
    open_program(table, "p")
    first, second = (admit(table, "p", now=number * S).call_id for number in range(2))
    table.index.heard(table.rows[key("p")].calls[first], 40 * S)
    assert table.expiring.silent_call(LIMITS, at(52 * S)) == second
    end(table, "p", second, now=52 * S)
    assert table.expiring.silent_call(LIMITS, at(52 * S)) is None
    assert table.expiring.silent_call(LIMITS, at(91 * S)) == first


class CountingRegistry(EngineRegistry):
    """Counts the engines that a refresh examines."""

    looks = 0

    def _examine(self, engine: Engine) -> None:
        self.looks += 1
        super()._examine(engine)


def test_engines_that_have_not_changed_are_not_looked_at() -> None:
    engines = CountingRegistry()
    for number in range(1000):
        attached(engines, f"e{number}")
    engines.refresh()
    engines.looks = 0
    engines.detach(engines.get(attached(engines, "e7").engine_id), 0)
    assert engines.facts_revision
    assert [e.engine_id for e in engines.forget_lost(registry.FORGET_LOST_US + 1)] == ["e7"]
    assert engines.looks == 1
