"""`tenant set`, `tenant list` and `tenant remove`: tenants' shares of the engines, and bounds of their use.

`agentserving` and `kubectl agentserving` share them, as they do program_commands.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click
from agentserving import Client
from agentserving.client import tenant_operations
from agentserving.client.values import TenantSettings
from agentserving.contract.service_class import ServiceClass
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentserving_cli.output import as_data, is_data, output_option, print_data
from agentserving_cli.program_commands import Connect, Where
from agentserving_cli.service_option import ServiceClassType

console = Console(soft_wrap=True)
# Titles of the columns by the fields of a tenant.
COLUMNS = {
    "weight": "WEIGHT",
    "max_programs": "PROGRAMS",
    "max_calls": "CALLS",
    "calls_per_minute": "CALLS/MIN",
    "tokens_per_minute": "TOKENS/MIN",
    "tokens_per_day": "TOKENS/DAY",
    "program_tokens": "TOKENS/PROGRAM",
    "program_engine_s": "SECONDS/PROGRAM",
    "program_calls": "CALLS/PROGRAM",
    "service_class": "SERVICE",
}


def tenant_commands(where: Where) -> click.Group:
    """`tenant set | list | remove`; `where` adds the options that name a cluster."""

    @click.group()
    def tenant() -> None:
        """Tenants: their shares of the engines, and bounds."""

    for command in (_set(where), _list(where), _remove(where)):
        tenant.add_command(command)
    return tenant


def _set(where: Where) -> click.Command:
    bound = click.IntRange(0)

    @click.command("set")
    @click.argument("tenant")
    @click.option("--weight", type=click.IntRange(1, 1000), help="Share of each engine while others have calls there.")
    @click.option("--programs", "max_programs", type=bound, help="Live programs.")
    @click.option("--calls", "max_calls", type=bound, help="Calls at the same time.")
    @click.option("--calls-per-minute", type=bound)
    @click.option("--tokens-per-minute", type=bound, help="Of prompts and answers.")
    @click.option("--tokens-per-day", type=bound, help="Of prompts and answers.")
    @click.option("--program-tokens", type=bound, help="Budget of a program without its own: tokens,")
    @click.option("--program-engine-seconds", "program_engine_s", type=bound, help="seconds of model execution,")
    @click.option("--program-calls", type=bound, help="calls.")
    @click.option(
        "--service-class",
        type=ServiceClassType(nothing="any"),
        help="Of programs that ask for none, and the best that they may ask for; any: no limit.",
    )
    @output_option
    @where
    def set_(connect: Connect, tenant: str, output: str, **settings: Any) -> None:
        """Set the share and bounds of TENANT; what is not given stays. 0: no bound."""
        if all(value is None for value in settings.values()):
            raise click.UsageError("nothing to set: give --weight, --service-class or a bound")
        operation = tenant_operations.set_tenant(tenant, **settings)
        with connect() as client:
            if is_data(output):
                print_data(client.run(as_data(operation, "tenant")), output)
            else:
                console.print(_table([client.run(operation)]))

    return set_


def _list(where: Where) -> click.Command:
    @click.command("list")
    @output_option
    @where
    def list_(connect: Connect, output: str) -> None:
        """List the tenants for which something is set. All others have weight 1 and no bounds."""
        with connect() as client:
            if is_data(output):
                print_data({"tenants": _documents(client)}, output)
            else:
                console.print(_table(client.list_tenants()))

    return list_


def _documents(client: Client) -> list[object]:
    found: list[object] = []
    token = ""
    while True:
        page = client.run(as_data(tenant_operations.list_tenants_page(page_token=token)))
        found += page["tenants"]
        token = page["next_page_token"]
        if not token:
            return found


def _table(tenants: Iterable[TenantSettings]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("TENANT", overflow="fold")
    for title in COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for tenant in tenants:
        cells = (_cell(getattr(tenant, field)) for field in COLUMNS)
        table.add_row(escape(tenant.tenant), *cells)
    return table


def _cell(value: int | ServiceClass) -> str:
    return (value.label if isinstance(value, ServiceClass) else str(value)) if value else "-"


def _remove(where: Where) -> click.Command:
    @click.command()
    @click.argument("tenant")
    @where
    def remove(connect: Connect, tenant: str) -> None:
        """Forget what is set for TENANT: weight 1, no bounds. Its keys and programs stay."""
        with connect() as client:
            client.run(tenant_operations.remove_tenant(tenant))
        click.echo(f"nothing is set for tenant {tenant} any more")

    return remove
