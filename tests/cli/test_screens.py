"""What ps, top and get show, at common terminal widths."""

from __future__ import annotations

import io

import pytest
from agentserving.client import messages
from agentserving.client.values import Engine, Overview, Program
from agentserving.contract.policy import PRESETS, Level, Policy
from agentserving.contract.policy_message import policy_to
from agentserving.v1 import admin_service_pb2, types_pb2
from agentserving_cli import screens
from rich.console import Console, RenderableType


def shown(what: RenderableType, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(what)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def program(program_id: str, level: int = 0, running: int = 0, queued: int = 0, tool: str = "") -> Program:
    calls = [
        types_pb2.Call(call_id=f"{program_id}.1.{n}", engine_id="engine-0", running=n < running, service_us=250_000)
        for n in range(running + queued)
    ]
    state = types_pb2.PROGRAM_STATE_TOOL_WAIT if tool else types_pb2.PROGRAM_STATE_ACTIVE
    message = types_pb2.Program(
        program_id=program_id, name="a [name]", state=state, level=level, calls=calls, tool=tool,
        attained_service_us=1_000_000, wait_us=7_200_000_000, output_tokens=12_345, prompt_tokens=100,
        cached_tokens=50, engine_ids=["engine-1"],
    )  # fmt: skip
    return messages.read(Program, message)


def engine(engine_id: str, state: types_pb2.EngineState.ValueType, reason: str = "") -> Engine:
    return messages.read(Engine, types_pb2.Engine(engine_id=engine_id, state=state, state_reason=reason))


def test_running_programs_come_first_then_queued_then_idle_and_lower_levels_before_higher() -> None:
    programs = [
        program("idle"), program("queued", queued=1), program("slow", level=3, running=1), program("fast", running=1)
    ]  # fmt: skip
    rows = shown(screens.programs_table(programs), 200)[1:]
    assert [row.split()[0] for row in rows] == ["fast", "slow", "queued", "idle"]


@pytest.mark.parametrize(
    ("name", "retention", "working_set", "line"),
    [
        ("program-plas", "kv_layout", "", "engine-1: contexts are not retained: the KV of the model's layers"),
        ("program-plas", "", "sliding_windows", None),
        ("fcfs", "kv_layout", "sliding_windows", None),
    ],
)
def test_the_headline_says_what_engines_leave_out_of_the_policy(
    name: str, retention: str, working_set: str, line: str | None
) -> None:
    able = types_pb2.EngineCapabilities(retention_obstacle=retention, working_set_obstacle=working_set)
    overview = admin_service_pb2.GetOverviewResponse(
        policy=types_pb2.PolicyVersion(policy=policy_to(PRESETS[name])),
        engines=[types_pb2.Engine(engine_id="engine-0"), types_pb2.Engine(engine_id="engine-1", capabilities=able)],
        store_healthy=True,
    )
    lines = shown(screens.headline(messages.read(Overview, overview)), 200)
    assert [each[: len(line)] for each in lines[1:]] == [line] if line else len(lines) == 1


@pytest.mark.parametrize("width", [80, 200])
def test_a_row_is_a_line_whatever_the_length_of_ids(width: int) -> None:
    programs = [program("p" * 120, running=2, queued=3), program("short")]
    lines = shown(screens.programs_table(programs, width), width)
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    heads = lines[0].split()
    wide = ("ENGINE", "SERVICE") if width > 80 else ()
    for name in ("PROGRAM", "LEVEL", "ATTAINED", "WAIT", "RUN", "QUEUED", "TOKENS", *wide):
        assert name in heads, "no title is cut"
    cells = lines[1].split()
    assert cells[-1] == ("engine-0" if wide else "12.3k")
    assert "12.3k" in cells
    assert "2.0h" in cells
    assert "2.25s" in cells, "attained service counts what calls in flight have received"


def test_names_are_not_taken_for_markup() -> None:
    assert "a [name]" in "\n".join(shown(screens.programs_table([program("p")]), 200))


def test_top_fits_its_screen_and_says_what_it_left_out() -> None:
    message = admin_service_pb2.GetOverviewResponse(store_message="etcd is away", programs_live=50)
    message.engines.add(engine_id="engine-0", state=types_pb2.ENGINE_STATE_READY)
    message.policy.policy.name = "fcfs"
    overview = messages.read(Overview, message)
    lines = shown(screens.top_screen(overview, [program(f"p{n}") for n in range(50)], 80, 24), 80)
    assert len(lines) <= 24
    assert "store: etcd is away" in lines
    assert lines[-1] == "and 34 more: agentserving ps"


def test_get_shows_the_account_and_the_calls() -> None:
    text = "\n".join(shown(screens.program_screen(program("p", running=1)), 80))
    assert "p.1.0" in text
    assert "1 running, 0 queued" in text
    assert "100 prompt (50% cached)" in text


def test_a_tool_wait_names_the_tool() -> None:
    text = "\n".join(shown(screens.programs_table([program("p", tool="search the whole internet")]), 200))
    assert "Tool wait search…ernet" in text


@pytest.mark.parametrize("width", [80, 200])
def test_an_engine_that_is_not_ready_is_shown_with_the_reason(width: int) -> None:
    engines = [
        engine("engine-0", types_pb2.ENGINE_STATE_READY),
        engine("engine-1", types_pb2.ENGINE_STATE_DOWN, "the engine process ended"),
        engine("engine-2", types_pb2.ENGINE_STATE_LOADING, "loading the model, for 20 s " + "x" * 200),
        engine("engine-3", types_pb2.ENGINE_STATE_FAILING, "5 calls in a row failed"),
    ]
    lines = shown(screens.engines_table(engines, width), width)
    assert len(lines) == 5, "one line an engine"
    assert "Down" in lines[2]
    assert lines[2].endswith("the engine process ended")
    assert "Loading" in lines[3]
    assert "Failing" in lines[4]
    assert "REASON" not in shown(screens.engines_table(engines[:1], width), width)[0]


def test_a_policy_is_described_in_words() -> None:
    policy = Policy(name="mine", levels=(Level(upper_bound_us=250_000, quantum_us=250_000), Level()))
    version = messages.policy_version(types_pb2.PolicyVersion(version=4, policy=policy_to(policy)), ("e0",), ("e1",))
    text = "\n".join(shown(screens.policy_screen(version), 80))
    assert "mine, version 4" in text
    assert "0.25s" in text
    assert "followed by: e0; not yet: e1" in text
    assert "no bound" in text


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_described_without_a_number_of_the_wire(name: str) -> None:
    version = messages.policy_version(types_pb2.PolicyVersion(version=1, policy=policy_to(PRESETS[name])))
    text = "\n".join(shown(screens.policy_screen(version), 200))
    assert name in text
    assert "_" not in text.replace(name, "")


def test_a_program_whose_budget_is_spent_says_so_and_what_to_do() -> None:
    message = types_pb2.Program(
        program_id="p", state=types_pb2.PROGRAM_STATE_PAUSED, pause_cause=types_pb2.PAUSE_CAUSE_BUDGET,
        budget=types_pb2.BudgetState(
            limit=types_pb2.Budget(tokens=200_000, calls=50), spent=types_pb2.Budget(tokens=210_000, calls=5)
        ),
    )  # fmt: skip
    spent = messages.read(Program, message)
    assert "Paused budget" in shown(screens.programs_table([spent], 200), 200)[1]
    assert "Spent" in shown(screens.programs_table([spent], 80), 80)[1]
    text = " ".join(shown(screens.program_screen(spent), 200))
    assert "210000 of 200000 tokens, 5 of 50 calls spent (105%); it goes on with: agentserving resume p --add" in text
    paused = types_pb2.Program(program_id="p", state=types_pb2.PROGRAM_STATE_PAUSED)
    assert "budget" not in " ".join(shown(screens.program_screen(messages.read(Program, paused)), 200))
