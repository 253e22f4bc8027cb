"""`audit`: who changed what, and who was refused, from the logs of a cluster's parts.

The lines are in the logs and nowhere else, so the command reads those: of the cluster of this machine, of pods, of a
file or of standard input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TextIO

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentserving_cli.audit_log import AuditLine, Wanted, chosen, read
from agentserving_cli.option_types import DurationText
from agentserving_cli.output import WIDE, is_data, output_option, print_data

# The lines of all logs that a cluster has, at least since then.
Logs = Callable[[timedelta], Iterable[str]]
Where = Callable[[Callable[..., Any]], Callable[..., Any]]


def audit_command(where: Where) -> click.Command:
    """`where` adds the options that name a cluster, and passes its `Logs`."""

    @click.command()
    @click.option(
        "--since", type=DurationText(), default="1h", show_default=True, help="How far back: 90s, 15m, 1h, 2d."
    )
    @click.option("--tenant", default="", help="Of one tenant only.")
    @click.option("--who", default="", help="Of one key id or certificate only.")
    @click.option("--refused", is_flag=True, help="Only what was refused or failed.")
    @click.option("-f", "--file", type=click.File(errors="replace"), help="A log to read instead; - is standard input.")
    @output_option
    @where
    def audit(
        logs: Logs, since: timedelta, tenant: str, who: str, refused: bool, file: TextIO | None, output: str
    ) -> None:
        """Who changed what, and who was refused, from the logs of the cluster's parts."""
        wanted = Wanted(since=datetime.now(UTC) - since, tenant=tenant, who=who, refused=refused)
        lines = chosen(read(file if file is not None else logs(since)), wanted)
        if is_data(output):
            print_data([line.fields for line in lines], output)
            return
        wide = output == "wide"
        console = Console(width=WIDE if wide else None)
        console.print(_table(lines, wide, console.width) if lines else "nothing was changed or refused")

    return audit


def _table(lines: Iterable[AuditLine], wide: bool, width: int) -> Table:
    """Eight columns in 200 characters; in 80, those that say who did what to what, and an object cut at its end."""
    titles = ("TIME", "WHO", "ROLE", "TENANT", "METHOD", "OBJECT", "OUTCOME", "FROM")
    shown = [title for title in titles if wide or title not in ("TENANT", "FROM")]
    rows = [_cells(line, wide) for line in lines]
    widths = {title: max(len(title), *(len(row[title]) for row in rows)) for title in shown}
    # Two characters are between columns.
    others = sum(widths.values()) - widths["OBJECT"] + 2 * (len(shown) - 1)
    widths["OBJECT"] = max(len("OBJECT"), min(widths["OBJECT"], width - others))
    table = Table(box=None, pad_edge=False)
    for title in shown:
        table.add_column(title, no_wrap=title != "OUTCOME", width=widths[title] if title != "OUTCOME" else None)
    for row in rows:
        table.add_row(*(escape(row[title]) for title in shown))
    return table


def _cells(line: AuditLine, wide: bool) -> dict[str, str]:
    outcome = " ".join(filter(None, (line.text("outcome"), line.text("reason"))))
    if omitted := line.text("omitted"):
        outcome += f" ({omitted} refusals before it were not written)"
    if repeated := line.text("repeated"):
        outcome += f" ({repeated} more since the line before)"
    method = line.text("method")
    return {
        "TIME": line.when.strftime("%Y-%m-%d %H:%M:%S" if wide else "%H:%M:%S"),
        "WHO": line.text("who"),
        "ROLE": line.text("role"),
        "TENANT": line.text("tenant"),
        "METHOD": method if wide else method.rpartition(".")[2],
        "OBJECT": line.text("object"),
        "OUTCOME": outcome,
        "FROM": line.text("peer"),
    }
