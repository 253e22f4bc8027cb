"""What programs have used and what it costs, as rows for spreadsheets and cost tools. Pure.

Columns follow OpenCost's allocations: a window, what it is allocated to, amounts, and a cost of the caller's price.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum

from agentserving.client.values import Program, ProgramState


class By(StrEnum):
    """What a row adds up."""

    PROGRAM = "program"
    TENANT = "tenant"
    CLASS = "class"


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """Programs of one row; `engine_cost` in the currency of the price, 0 without one.

    window_start and window_end: when the first of them was opened, and when the last one was active last. class_name:
    the name of the program's class; empty in rows of tenants, as `program` is in all that add programs up.
    """

    window_start: datetime | None
    window_end: datetime | None
    tenant: str
    class_name: str = ""
    program: str = ""
    root: str = ""
    outcome: str = ""
    programs: int = 1
    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    engine_hours: float = 0.0
    engine_cost: float = 0.0


def rows(programs: Iterable[Program], by: By, price: float, since: datetime) -> list[CostRow]:
    """Of programs that have been active since, the dearest first. `price`: of an hour of model execution."""
    found: dict[tuple[str, str, str], CostRow] = {}
    for program in programs:
        row = _row(program, price)
        if row.window_end is None or row.window_end < since:
            continue
        if by is not By.PROGRAM:
            row = replace(row, program="", root="", outcome="", class_name=row.class_name if by is By.CLASS else "")
        key = row.tenant, row.class_name, row.program
        found[key] = _sum(found[key], row) if key in found else row
    return sorted(found.values(), key=lambda row: (-row.engine_hours, row.tenant, row.class_name, row.program))


def _row(program: Program, price: float) -> CostRow:
    """With the calls in flight, as far as their engines have reported them."""
    live = program.calls
    times = (program.open_time, program.last_arrival_time, program.last_completion_time, program.close_time)
    hours = (program.total_service_us + sum(call.service_us for call in live)) / 3.6e9
    return CostRow(
        window_start=program.open_time,
        window_end=max((each for each in times if each is not None), default=None),
        tenant=program.tenant,
        class_name=program.name,
        program=program.program_id,
        root=program.root_program_id,
        outcome=program.outcome.name.lower() if program.state is ProgramState.CLOSED else "",
        calls=program.calls_completed + len(live),
        prompt_tokens=program.prompt_tokens + sum(call.prompt_tokens for call in live),
        cached_tokens=program.cached_tokens + sum(call.cached_tokens for call in live),
        output_tokens=program.output_tokens + sum(call.output_tokens for call in live),
        engine_hours=hours,
        engine_cost=hours * price,
    )


_SUMS = (
    "programs", "calls", "prompt_tokens", "cached_tokens", "output_tokens", "engine_hours", "engine_cost",
)  # fmt: skip


def _sum(one: CostRow, other: CostRow) -> CostRow:
    starts = [each for each in (one.window_start, other.window_start) if each is not None]
    ends = [each for each in (one.window_end, other.window_end) if each is not None]
    sums = {name: getattr(one, name) + getattr(other, name) for name in _SUMS}
    return replace(one, window_start=min(starts, default=None), window_end=max(ends, default=None), **sums)


def as_dict(row: CostRow) -> dict[str, object]:
    """A row by column, as CSV and JSON show it."""
    found = asdict(row)
    found["class"] = found.pop("class_name")
    for name in ("window_start", "window_end"):
        found[name] = f"{found[name]:%Y-%m-%dT%H:%M:%SZ}" if found[name] is not None else ""
    for name in ("engine_hours", "engine_cost"):
        found[name] = round(found[name], 9)
    return {name: found[name] for name in COLUMNS}


COLUMNS = (
    "window_start", "window_end", "tenant", "class", "program", "root", "outcome", *_SUMS,
)  # fmt: skip


def as_csv(found: Sequence[CostRow]) -> str:
    """With a line of column names. Texts that a spreadsheet would take for a formula begin with an apostrophe."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in found:
        writer.writerow({name: _plain(value) for name, value in as_dict(row).items()})
    return text.getvalue()


def _plain(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
