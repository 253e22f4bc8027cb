"""`top`: programs as trees, in the order and with the filter that its keys choose."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from agentserving.client import messages
from agentserving.client.values import Overview, Program
from agentserving.v1 import admin_service_pb2, types_pb2
from agentserving_cli import screens
from agentserving_cli.top_command import split_keys
from agentserving_cli.top_view import DOWN, ESCAPE, PAGE_DOWN, UP, SortBy, TopView, tree_rows
from cli.test_screens import shown
from hypothesis import given
from hypothesis import strategies as st
from support.eventually import DEADLINE_S
from support.served_plane import ServedPlane


def program(program_id: str, parent: str = "", running: int = 0, name: str = "", **fields: Any) -> Program:
    calls = [types_pb2.Call(call_id=f"{program_id}.1.{n}", engine_id="e0", running=True) for n in range(running)]
    message = types_pb2.Program(
        program_id=program_id, parent_program_id=parent, name=name, calls=calls, service_class=2, **fields
    )
    return messages.read(Program, message)


FAMILY = [
    program("a", name="review", attained_service_us=9),
    program("a/1", "a", name="explore"),
    program("a/1/x", "a/1", running=1, name="grep"),
    program("b", running=1, name="chat", attained_service_us=5),
    program("b/late", "b", name="write", state=types_pb2.PROGRAM_STATE_TOOL_WAIT),
    program("orphan", "gone", name="left"),
]


def outline(rows: Any) -> list[tuple[str, int]]:
    return [(str(row.program.program_id), row.depth) for row in rows]


def test_sub_agents_stand_below_their_parents_and_a_tree_where_its_best_member_belongs() -> None:
    assert outline(tree_rows(FAMILY)) == [
        ("a", 0), ("a/1", 1), ("a/1/x", 2), ("b", 0), ("b/late", 1), ("orphan", 0),
    ]  # fmt: skip
    assert outline(tree_rows(FAMILY, SortBy.NAME))[0] == ("b", 0)
    assert outline(tree_rows(FAMILY, SortBy.ATTAINED))[0] == ("a", 0)


def test_a_filter_keeps_the_programs_above_what_it_finds() -> None:
    assert outline(tree_rows(FAMILY, wanted="GREP")) == [("a", 0), ("a/1", 1), ("a/1/x", 2)]
    assert outline(tree_rows(FAMILY, wanted="tool wait")) == [("b", 0), ("b/late", 1)]
    assert outline(tree_rows(FAMILY, wanted="nothing")) == []
    assert len(tree_rows(FAMILY, wanted="standard")) == len(FAMILY)


@given(
    parents=st.lists(st.integers(-1, 30), max_size=30),
    sort=st.sampled_from(SortBy),
    running=st.lists(st.integers(0, 2), min_size=30, max_size=30),
)
def test_every_program_is_shown_once_and_below_its_parent(parents: list[int], sort: SortBy, running: list[int]) -> None:
    programs = [
        # Opened after its parent, as the process table has it; some parents are not listed any more.
        program(str(at), str(parent) if parent < at else "gone", running[at]) if parent >= 0 else program(str(at))
        for at, parent in enumerate(parents)
    ]
    rows = tree_rows(programs, sort)
    assert sorted(int(row.program.program_id) for row in rows) == list(range(len(parents)))
    path: list[str] = []
    for row in rows:
        del path[row.depth :]
        assert row.depth == 0 or row.program.parent_program_id == path[-1]
        path.append(row.program.program_id)


def test_keys_sort_filter_scroll_and_quit() -> None:
    view = TopView()
    view.press("s")
    assert view.sort is SortBy.ATTAINED
    for key in "/qu\x7fs":
        view.press(key)
    assert (view.wanted, view.ended, view.sort) == ("qs", False, SortBy.ATTAINED), "they are text while it is typed"
    view.press("\r")
    assert not view.typing
    view.press(ESCAPE)
    assert view.wanted == ""
    rows = tree_rows(FAMILY)
    view.press(DOWN)
    assert view.shown(rows, 3)[0] == rows[1]
    view.press(PAGE_DOWN, page=50)
    assert view.shown(rows, 3) == rows[-3:], "the last page stays full"
    view.press(UP)
    assert view.skipped == 2
    view.press("q")
    assert view.ended


def test_a_terminals_sequences_are_keys_and_unknown_ones_nothing() -> None:
    assert split_keys("q\x1b[A\x1b[6~x\x1b[1;5C\x1bOB\x1b") == ["q", UP, PAGE_DOWN, "x", DOWN, ESCAPE]


def test_names_are_readable_at_80_columns() -> None:
    message = admin_service_pb2.GetOverviewResponse()
    message.engines.add(engine_id="engine-0", state=types_pb2.ENGINE_STATE_READY)
    long = program("p-0f3a" * 8, name="code-review", running=1)
    child = program("c" * 40, long.program_id, name="explore", running=1)
    lines = shown(screens.top_screen(messages.read(Overview, message), [long, child], 80, 24, TopView()), 80)
    assert any(line.startswith("p-0f") and " code-review " in line for line in lines)
    assert any(line.startswith("└ ccc") and " explore " in line for line in lines)
    assert lines[-1] == "q quits   s sorts: urgency   / filters   arrows scroll"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("height", [12, 24, 60])
def test_the_screen_of_a_view_fits_and_says_where_it_is(height: int) -> None:
    overview = messages.read(Overview, admin_service_pb2.GetOverviewResponse())
    programs = [program(f"p{number}", running=1) for number in range(100)]
    lines = shown(screens.top_screen(overview, programs, 80, height, TopView(skipped=5)), 80)
    assert len(lines) <= height
    assert lines[-1].startswith("6 to ")
    assert " of 100 programs" in lines[-1]


class Terminal:
    """`agentserving top` on a terminal of its own."""

    def __init__(self, port: int) -> None:
        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "agentserving_cli.main", "top", "--control-plane", f"127.0.0.1:{port}"]
        environment = {**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self._seen = ""

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def sees(self, text: str) -> bool:
        """Reads until the screen has this text; what was read before it is forgotten."""
        until = time.monotonic() + DEADLINE_S
        while text not in self._seen and time.monotonic() < until:
            ready, _, _ = select.select([self._ours], [], [], 0.1)
            if ready:
                self._seen += os.read(self._ours, 65536).decode(errors="replace")
        found = text in self._seen
        self._seen = self._seen.partition(text)[2]
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def closing() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for each in opened:
        each.close()


async def test_top_on_a_real_terminal_reads_keys_and_quits_with_q(closing: list[Terminal]) -> None:
    async with ServedPlane() as plane:
        await plane.open("run-1", name="review")
        await plane.open("sub-1", parent="run-1", name="explore")
        terminal = Terminal(plane.port)
        closing.append(terminal)

        def use() -> int:
            assert terminal.sees("run-1 review")
            assert terminal.sees("└ sub-1 explore")
            terminal.press("s")
            assert terminal.sees("s sorts: attained")
            terminal.press("/nothing\r")
            assert terminal.sees("filter: nothing (Esc ends it)")
            terminal.press("q")
            return terminal.process.wait(DEADLINE_S)

        assert await asyncio.to_thread(use) == 0
