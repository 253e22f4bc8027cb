"""`backup`: whether a snapshot of etcd is one that a cluster can be restored from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from agentserving_cli.connection import fail
from agentserving_cli.local.backup import BackupUnusableError, check
from agentserving_cli.local.process import StartFailedError
from agentserving_cli.output import is_data, output_option, print_data

# Unreadable items that are named; all of them with -o json.
NAMED = 20


@click.group()
def backup() -> None:
    """Backups of the process table, which are snapshots of etcd."""


@backup.command("check")
@click.argument("snapshot", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--prefix", default="", help="Of one cluster, as /agentserving/NAMESPACE/NAME; else each is checked.")
@output_option
def check_command(snapshot: Path, prefix: str, output: str) -> None:
    """Restore a snapshot into a temporary directory and lead on it.

    Starts a real etcd on the restored data and reads everything as a control plane does when it starts. Exit status 1
    when the file cannot be restored, contains no cluster, or has items that cannot be read. Needs etcd and etcdutl
    (ETCD_BIN or PATH), and as much free space in the temporary directory as the snapshot has.
    """
    try:
        reports = asyncio.run(check(snapshot, prefix.rstrip("/")))
    except (BackupUnusableError, StartFailedError) as error:
        fail(str(error))
    if is_data(output):
        print_data(reports, output)
    else:
        for report in reports:
            _print(report)
    if not reports:
        fail(f"{snapshot} contains no cluster: its etcd has no key of agentserving")
    bad = [each["prefix"] for each in reports if each["error"] or each["unreadable"]]
    if bad:
        fail(f"not everything in the backup can be used: {', '.join(bad)}")


def _print(report: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(report['prefix'])}[/bold] at revision {report['revision']}")
    if report["error"]:
        console.print(f"  [red]cannot be used: {escape(report['error'])}[/red]")
        return
    programs = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in report["programs"].items() if count)
    epoch = f"last epoch {report['epoch']}" if report["epoch"] else "no leader at the time"
    console.print(f"  items: {report['items']}; {epoch}; policy {escape(report['policy'])}")
    console.print(f"  programs: {programs or 'none'}; calls in flight: {report['calls_in_flight']}")
    console.print(f"  keys: {report['keys']}; tenants with settings: {report['tenants']}")
    for key, reason in list(report["unreadable"].items())[:NAMED]:
        console.print(f"  [red]unreadable: {escape(key.replace(chr(0), '/'))}: {escape(reason)}[/red]")
    if (more := len(report["unreadable"]) - NAMED) > 0:
        console.print(f"  [red]and {more} more unreadable items[/red]")
