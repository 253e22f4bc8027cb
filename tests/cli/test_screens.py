"""What ps, top and get show, at the widths that people have."""

from __future__ import annotations

import io

import pytest
from agentserving.v1 import admin_service_pb2, types_pb2
from agentserving_cli import screens
from rich.console import Console, RenderableType


def shown(what: RenderableType, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(what)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def program(program_id: str, level: int = 0, running: int = 0, queued: int = 0) -> types_pb2.Program:
    calls = [
        types_pb2.Call(call_id=f"{program_id}.1.{n}", engine_id="engine-0", running=n < running, service_us=250_000)
        for n in range(running + queued)
    ]
    return types_pb2.Program(
        program_id=program_id, name="a [name]", state=types_pb2.PROGRAM_STATE_ACTIVE, level=level, calls=calls,
        attained_service_us=1_000_000, wait_us=7_200_000_000, output_tokens=12_345, prompt_tokens=100,
        cached_tokens=50, engine_ids=["engine-1"],
    )  # fmt: skip


def test_running_programs_come_first_then_queued_then_idle_and_lower_levels_before_higher() -> None:
    programs = [
        program("idle"), program("queued", queued=1), program("slow", level=3, running=1), program("fast", running=1)
    ]  # fmt: skip
    rows = shown(screens.programs_table(programs), 200)[1:]
    assert [row.split()[0] for row in rows] == ["fast", "slow", "queued", "idle"]


@pytest.mark.parametrize("width", [80, 200])
def test_a_row_is_a_line_whatever_the_length_of_ids(width: int) -> None:
    programs = [program("p" * 120, running=2, queued=3), program("short")]
    lines = shown(screens.programs_table(programs, width), width)
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    heads = lines[0].split()
    for name in ("PROGRAM", "LEVEL", "ATTAINED", "WAIT", "RUN", "QUEUED", "TOKENS", "ENGINE"):
        assert name in heads, "no title is cut"
    cells = lines[1].split()
    assert cells[-1] == "engine-0"
    assert "12.3k" in cells
    assert "2.0h" in cells
    assert "2.25s" in cells, "attained service counts what calls in flight have received"


def test_names_are_not_taken_for_markup() -> None:
    assert "a [name]" in "\n".join(shown(screens.programs_table([program("p")]), 200))


def test_top_fits_its_screen_and_says_what_it_left_out() -> None:
    overview = admin_service_pb2.GetOverviewResponse(store_message="etcd is away", programs_live=50)
    overview.engines.add(engine_id="engine-0", state=types_pb2.ENGINE_STATE_READY)
    lines = shown(screens.top_screen(overview, [program(f"p{n}") for n in range(50)], 80, 24), 80)
    assert len(lines) <= 24
    assert "store: etcd is away" in lines
    assert lines[-1] == "and 34 more: agentserving ps"


def test_get_tells_the_account_and_the_calls() -> None:
    text = "\n".join(shown(screens.program_screen(program("p", running=1)), 80))
    assert "p.1.0" in text
    assert "1 running, 0 queued" in text
    assert "100 prompt (50% cached)" in text


def test_a_policy_is_told_in_words() -> None:
    told = admin_service_pb2.GetPolicyResponse(acknowledged_engine_ids=["e0"], pending_engine_ids=["e1"])
    told.policy.version = 4
    told.policy.policy.name = "mine"
    told.policy.policy.levels.add(upper_bound_us=250_000, quantum_us=250_000)
    told.policy.policy.levels.add()
    text = "\n".join(shown(screens.policy_screen(told), 80))
    assert "mine, version 4" in text
    assert "0.25s" in text
    assert "followed by: e0; not yet: e1" in text
    assert "no bound" in text
