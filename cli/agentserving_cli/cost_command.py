"""`cost`: what programs have used, by program, tenant or class. `agentserving` and `kubectl agentserving` share it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentserving_cli.costs import By, CostRow, as_csv, as_dict, rows
from agentserving_cli.option_types import DurationText
from agentserving_cli.output import print_data
from agentserving_cli.program_commands import EVERY_STATE, Connect, Where
from agentserving_cli.screens import count, cut, plain_table

console = Console(soft_wrap=True)
# Width of the other columns and the gaps, and bounds of what is cut.
_TAKEN, _NAME, _LEAST_ID = 65, 12, 12


def cost_command(where: Where) -> click.Command:
    @click.command()
    @click.option(
        "--since", type=DurationText(), default="24h", show_default=True, help="How far back: 90s, 15m, 1h, 2d."
    )
    @click.option("--by", type=click.Choice([each.value for each in By]), default=By.PROGRAM.value, show_default=True)
    @click.option("--price", type=click.FloatRange(0), default=0.0, help="Of an hour of model execution.")
    @click.option("-o", "--output", type=click.Choice(["table", "csv", "json", "yaml"]), default="table")
    @where
    def cost(connect: Connect, since: timedelta, by: str, price: float, output: str) -> None:
        """Show calls, tokens and engine hours of live and recently ended programs, and their cost."""
        with connect() as client:
            found = rows(client.list_programs(states=EVERY_STATE), By(by), price, datetime.now(UTC) - since)
        if output == "csv":
            click.echo(as_csv(found), nl=False)
            return
        if output != "table":
            print_data({"costs": [as_dict(row) for row in found]}, output)
            return
        console.print(_table(found, priced=price > 0, width=console.width))

    return cost


def _table(found: Sequence[CostRow], *, priced: bool, width: int) -> Table:
    """Ids are cut so that no title is."""
    titles = (
        "TENANT",
        "CLASS",
        "PROGRAM",
        "CALLS",
        "PROMPT",
        "CACHED",
        "OUTPUT",
        "HOURS",
        *(("COST",) if priced else ()),
    )
    table = plain_table(titles, titles[:3])
    room = max(_LEAST_ID, width - _TAKEN - (11 if priced else 0))
    for row in found:
        table.add_row(
            escape(cut(row.tenant, _NAME)), escape(cut(row.class_name, _NAME)) or "-",
            escape(cut(row.program, room)) or str(row.programs),
            count(row.calls), count(row.prompt_tokens), count(row.cached_tokens), count(row.output_tokens),
            f"{row.engine_hours:.4f}", *((f"{row.engine_cost:.4f}",) if priced else ()),
        )  # fmt: skip
    return table
