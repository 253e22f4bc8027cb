"""Cost rows: every call is in exactly one row of each view, and the file is one that spreadsheets read."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta

from agentserving.client import messages
from agentserving.client.values import Program
from agentserving.v1 import types_pb2
from agentserving_cli.costs import COLUMNS, By, as_csv, as_dict, rows
from hypothesis import given
from hypothesis import strategies as st

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
HOUR_US = 3_600_000_000


def program(
    program_id: str, *, tenant: str = "acme", name: str = "triage", opened: datetime = NOON, **fields: object
) -> Program:
    message = types_pb2.Program(program_id=program_id, root_program_id=program_id, tenant=tenant, name=name, **fields)  # type: ignore[arg-type]
    message.open_time.FromDatetime(opened)
    return messages.read(Program, message)


PROGRAMS = st.lists(
    st.builds(
        lambda number, tenant, name, us, tokens, live: (number, tenant, name, us, tokens, live),
        st.integers(0, 10**6), st.sampled_from(("a", "b")), st.sampled_from(("", "x", "y")),
        st.integers(0, HOUR_US), st.integers(0, 10**6), st.integers(0, 10**6),
    ),
    unique_by=lambda each: (each[0], each[1]),
)  # fmt: skip


@given(PROGRAMS, st.sampled_from(By))
def test_every_view_adds_up_to_the_same_sums(drawn: list[tuple[int, str, str, int, int, int]], by: By) -> None:
    programs = [
        program(
            f"p{number}", tenant=tenant, name=name, total_service_us=us, prompt_tokens=tokens, calls_completed=1,
            calls=[types_pb2.Call(call_id="c", output_tokens=live)],
        )
        for number, tenant, name, us, tokens, live in drawn
    ]  # fmt: skip
    found = rows(programs, by, 2.0, LONG_AGO)
    assert sum(row.programs for row in found) == len(drawn)
    assert sum(row.calls for row in found) == 2 * len(drawn)
    assert sum(row.prompt_tokens for row in found) == sum(each[4] for each in drawn)
    assert sum(row.output_tokens for row in found) == sum(each[5] for each in drawn)
    hours = sum(each[3] for each in drawn) / HOUR_US
    assert abs(sum(row.engine_cost for row in found) - 2 * hours) < 1e-6
    keys = {By.PROGRAM: 0, By.TENANT: 1, By.CLASS: 2}[by]
    assert len(found) == len({(each[1], each[2] if keys == 2 else "", each[0] if keys == 0 else 0) for each in drawn})


def test_programs_that_were_not_active_since_are_left_out_and_the_dearest_is_first() -> None:
    late = types_pb2.Program(program_id="late", tenant="acme", total_service_us=HOUR_US)
    late.open_time.FromDatetime(NOON - timedelta(hours=5))
    late.last_completion_time.FromDatetime(NOON)
    programs = [
        program("old", opened=NOON - timedelta(hours=5)), program("cheap"), messages.read(Program, late)
    ]  # fmt: skip
    found = rows(programs, By.PROGRAM, 2.5, NOON - timedelta(hours=1))
    assert [(row.program, row.engine_hours, row.engine_cost) for row in found] == [("late", 1, 2.5), ("cheap", 0, 0)]
    assert as_dict(found[0])["window_start"] == "2026-03-01T07:00:00Z"
    assert as_dict(found[0])["window_end"] == "2026-03-01T12:00:00Z"


def test_a_csv_has_all_columns_and_no_formula() -> None:
    text = as_csv(rows([program('=cmd|" /C calc"', name="a,b")], By.PROGRAM, 0, LONG_AGO))
    head, line = list(csv.reader(io.StringIO(text)))
    assert head == list(COLUMNS)
    shown = dict(zip(head, line, strict=True))
    assert (shown["program"], shown["class"], shown["engine_cost"]) == ('\'=cmd|" /C calc"', "a,b", "0.0")
