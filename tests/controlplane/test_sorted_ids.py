"""Ids in blocks behave as one sorted list, and no change moves more than a block or two of them."""

from __future__ import annotations

import random

import pytest
from agentserving.contract.ids import ProgramId
from agentserving_controlplane.table import sorted_ids
from agentserving_controlplane.table.sorted_ids import SortedIds


@pytest.mark.parametrize("seed", range(5))
def test_any_additions_and_removals_leave_the_ids_in_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_ids, "BLOCK", 3)
    dice, ids, model = random.Random(seed), SortedIds(), set[ProgramId]()
    for _ in range(600):
        program_id = ProgramId(f"p{dice.randrange(60):02}")
        if program_id in model:
            ids.remove(program_id)
            model.remove(program_id)
        else:
            ids.add(program_id)
            model.add(program_id)
        start = ProgramId(f"p{dice.randrange(-1, 62):02}")
        assert list(ids.after(start)) == sorted(each for each in model if each > start)
        assert list(ids.after("")) == sorted(model)
        assert bool(ids) == bool(model)
        assert max((len(block) for block in ids._blocks), default=0) < 2 * sorted_ids.BLOCK
