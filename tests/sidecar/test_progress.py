"""When an engine counts as stuck."""

from __future__ import annotations

import pytest
from agentserving.contract.channel import Load
from agentserving_sidecar.progress_probe import Progress

S = 1_000_000


@pytest.mark.parametrize(
    ("load", "silent_s", "stuck"),
    [
        (None, 60, False),
        (Load(running=0, last_step_age_us=60 * S), 0, False),
        (Load(running=1, last_step_age_us=4 * S), 0, False),
        (Load(running=1, last_step_age_us=5 * S), 0, True),
        (Load(running=1, last_step_age_us=3 * S), 2, True),
        (Load(running=0, waiting=3), 4, False),
        (Load(running=0, waiting=3), 5, True),
        (Load(), 5, True),
    ],
)
def test_an_engine_is_stuck_when_it_has_work_and_makes_no_step_or_is_silent(
    load: Load | None, silent_s: int, stuck: bool
) -> None:
    assert Progress(5 * S).is_stuck(load, silent_s * S) is stuck


def test_a_missed_heartbeat_is_not_silence_however_short_the_bound() -> None:
    assert not Progress(S // 10).is_stuck(Load(), 2 * S)
