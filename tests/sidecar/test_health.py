"""When an engine counts as serving, loading, stuck or down."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agentserving.contract.channel import Load
from agentserving_sidecar.health import (
    COMPUTING_STEP_US,
    SILENT_US,
    UNMEASURED_STEP_US,
    Front,
    FrontState,
    Plugin,
    State,
    health,
)

S = 1_000_000
LIMIT = 5 * S
WELL = Front(FrontState.HEALTHY, has_served=True)
IDLE = Plugin(has_booted=True, is_connected=True, load=Load(), max_model_len=8192)
GONE = replace(IDLE, is_connected=False)


def running(age_us: int, price_us: float = 100.0, **more: object) -> Plugin:
    load = Load(running=2, last_step_age_us=age_us, prefill_us_per_token=price_us)
    return replace(IDLE, load=load, **more)  # type: ignore[arg-type] # fields of Plugin


def state_of(plugin: Plugin, front: Front = WELL, limit_us: int = LIMIT) -> State:
    found = health(plugin, front, step_limit_us=limit_us)
    assert bool(found.reason) is (found.state is not State.SERVING)
    return found.state


@pytest.mark.parametrize("front", [Front(state) for state in FrontState])
def test_an_engine_whose_plugin_has_never_connected_is_loading(front: Front) -> None:
    assert state_of(Plugin(), front) is State.LOADING


def test_an_engine_without_the_plugin_says_what_is_missing() -> None:
    assert "--scheduler-cls" in health(Plugin(), WELL, step_limit_us=LIMIT).reason


@pytest.mark.parametrize(
    ("front", "state"),
    [
        (Front(FrontState.UNKNOWN), State.LOADING),
        (Front(FrontState.REFUSED), State.LOADING),
        (Front(FrontState.UNHEALTHY, "HTTP 503"), State.LOADING),
        (Front(FrontState.SILENT), State.LOADING),
        (WELL, State.SERVING),
        (Front(FrontState.REFUSED, has_served=True), State.DOWN),
        (Front(FrontState.UNHEALTHY, "HTTP 503", has_served=True), State.DOWN),
        (Front(FrontState.SILENT, has_served=True), State.STUCK),
    ],
)
def test_a_front_that_does_not_answer_is_loading_until_it_has_served_once(front: Front, state: State) -> None:
    assert state_of(IDLE, front) is state


@pytest.mark.parametrize("front", [WELL, Front(FrontState.REFUSED, has_served=True), Front(FrontState.SILENT)])
def test_an_engine_whose_process_has_ended_is_down_whatever_its_front_says(front: Front) -> None:
    assert state_of(replace(GONE, is_absent=True), front) is State.DOWN
    assert state_of(replace(GONE, disconnected_us=S), front) is State.DOWN


def test_a_connection_that_is_back_immediately_changes_nothing() -> None:
    assert state_of(replace(GONE, disconnected_us=S // 2)) is State.SERVING


def test_a_process_that_is_stopped_is_stuck_before_it_misses_a_heartbeat() -> None:
    assert state_of(replace(IDLE, is_stopped=True)) is State.STUCK


@pytest.mark.parametrize(("silent_us", "state"), [(SILENT_US - 1, State.SERVING), (SILENT_US, State.STUCK)])
def test_an_engine_without_heartbeats_is_stuck_although_it_is_idle(silent_us: int, state: State) -> None:
    assert state_of(replace(IDLE, silent_us=silent_us)) is state


def test_silence_is_noticed_within_two_seconds() -> None:
    assert SILENT_US <= 1.6 * S


@pytest.mark.parametrize(
    ("plugin", "state"),
    [
        # 8,192 tokens of 100 us are 0.8 s: the limit is the one that was set.
        (running(5 * S - 1), State.SERVING),
        (running(5 * S), State.STUCK),
        (running(4 * S, silent_us=S), State.STUCK),
        # 5 ms a token, as on a CPU: the largest step takes 41 s.
        (running(40 * S, price_us=5000.0), State.SERVING),
        (running(123 * S, price_us=5000.0), State.STUCK),
        # The first steps, whose cost is not measured yet, compile kernels.
        (running(UNMEASURED_STEP_US - 1, price_us=0.0), State.SERVING),
        (running(UNMEASURED_STEP_US, price_us=0.0), State.STUCK),
        # The process uses the CPU.
        (running(60 * S, is_computing=True), State.SERVING),
        (running(COMPUTING_STEP_US, is_computing=True), State.STUCK),
        (running(60 * S, is_computing=False), State.STUCK),
        # Nothing runs.
        (replace(IDLE, load=Load(running=0, waiting=3, last_step_age_us=900 * S)), State.SERVING),
        (replace(IDLE, load=None), State.SERVING),
    ],
)
def test_a_step_is_a_hang_only_when_it_is_longer_than_any_step_of_this_engine(plugin: Plugin, state: State) -> None:
    assert state_of(plugin) is state


def test_the_limit_of_a_step_can_be_set() -> None:
    assert state_of(running(90 * S), limit_us=120 * S) is State.SERVING
    assert state_of(running(120 * S), limit_us=120 * S) is State.STUCK
