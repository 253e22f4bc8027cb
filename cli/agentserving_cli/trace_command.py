"""`agentserving trace`: a run as a timeline in the terminal, and as a file for Perfetto."""

from __future__ import annotations

import json
from pathlib import Path

import click
from agentserving.client import traces
from rich.console import Console

from agentserving_cli.output import as_data, is_data, output_option, print_data
from agentserving_cli.program_commands import Connect, Where
from agentserving_cli.traces.chrome import chrome_trace
from agentserving_cli.traces.timeline import timeline_screen

WIDE_TIMELINE = 200


def trace_command(where: Where) -> click.Command:
    @click.command()
    @click.argument("program_id")
    @click.option(
        "--out",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Also write the run as a Chrome trace, which https://ui.perfetto.dev opens (in the browser alone).",
    )
    @click.option("--calls", type=click.IntRange(0), default=40, show_default=True, help="Lines a program; 0: all.")
    @output_option
    @where
    def trace(connect: Connect, program_id: str, out: Path | None, calls: int, output: str) -> None:
        """Show when a program's calls waited, computed and decoded, and why their prefixes were lost."""
        operation = traces.get_trace(program_id)
        with connect() as client:
            if is_data(output) and out is None:
                print_data(client.run(as_data(operation)), output)
                return
            found = client.run(operation)
        if out is not None:
            out.write_text(json.dumps(chrome_trace(found)))
        shown = Console(width=WIDE_TIMELINE) if output == "wide" else Console()
        shown.print(timeline_screen(found, shown.width, calls))
        if out is not None:
            click.echo(f"wrote {out}: open it at https://ui.perfetto.dev or chrome://tracing")

    return trace
