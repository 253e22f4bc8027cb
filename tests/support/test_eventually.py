"""The helper that every waiting test relies on."""

from __future__ import annotations

import pytest
from support.eventually import eventually, eventually_async


def test_the_first_true_value_is_returned() -> None:
    values = iter([0, "", 3, 4])
    assert eventually(lambda: next(values), poll_s=0) == 3


def test_a_condition_that_never_holds_fails_with_its_name_and_last_value() -> None:
    with pytest.raises(AssertionError, match=r"three calls: not true within 0 s; last value: \[\]"):
        eventually(lambda: [], "three calls", deadline_s=0)


async def test_conditions_may_be_coroutine_functions() -> None:
    values = iter([False, True])

    async def condition() -> bool:
        return next(values)

    assert await eventually_async(condition, poll_s=0)


async def test_a_coroutine_that_never_holds_fails_with_its_name() -> None:
    async def never() -> bool:
        return False

    with pytest.raises(AssertionError, match="never: not true within 0 s; last value: False"):
        await eventually_async(never, deadline_s=0)
