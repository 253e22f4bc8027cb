"""`key create`, `key list` and `key revoke`: the keys by which clients and administrators are known.

`agentserving` and `kubectl agentserving` share them, as they do program_commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import click
from agentserving import Client
from agentserving.client import key_operations
from agentserving.client.keys import ApiKey, KeyRole
from agentserving.contract.service_class import ServiceClass
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentserving_cli.output import as_data, is_data, output_option, print_data
from agentserving_cli.program_commands import Connect, Where
from agentserving_cli.service_option import ServiceClassType

DAY_S = 86_400.0
console = Console(soft_wrap=True)


def key_commands(where: Where) -> click.Group:
    @click.group()
    def key() -> None:
        """API keys of clients and administrators."""

    for command in (_create(where), _list(where), _revoke(where)):
        key.add_command(command)
    return key


def _create(where: Where) -> click.Command:
    @click.command()
    @click.argument("tenant", required=False, default="")
    @click.option("--for", "name", default="", help="What the key is for: a person, a program, a CI job.")
    @click.option("--days", type=click.FloatRange(0.001, 3650), help="When it expires; by default never.")
    @click.option("--admin", is_flag=True, help="An administrator's: opens every tenant, policies, engines and keys.")
    @click.option("--calls-per-minute", type=click.IntRange(0), default=0, help="At each gateway; 0: unbounded.")
    @click.option(
        "--tokens-per-minute",
        type=click.IntRange(0),
        default=0,
        help="Of prompts, estimated from the length of requests; at each gateway; 0: unbounded.",
    )
    @click.option(
        "--service-class",
        type=ServiceClassType(),
        default=ServiceClass.UNSPECIFIED,
        help="Of programs opened with it, and the best that they may ask for; by default the tenant's.",
    )
    @output_option
    @where
    def create(
        connect: Connect, tenant: str, name: str, days: float | None, admin: bool, output: str,
        calls_per_minute: int, tokens_per_minute: int, service_class: ServiceClass,
    ) -> None:  # fmt: skip
        """Make a key for the programs of TENANT. It is printed once: the cluster stores only its hash."""
        if admin == bool(tenant):
            raise click.UsageError("name the TENANT that the key opens, or give --admin for an administrator's key")
        operation = key_operations.create_key(
            tenant,
            name=name,
            lifetime_s=(days or 0) * DAY_S,
            admin=admin,
            calls_per_minute=calls_per_minute,
            prompt_tokens_per_minute=tokens_per_minute,
            service_class=service_class,
        )
        with connect() as client:
            if is_data(output):
                print_data(client.run(as_data(operation)), output)
                return
            made = client.run(operation)
        # The key alone on standard output, for scripts.
        click.echo(made.text)
        whose = "an administrator" if admin else f"tenant {tenant}"
        until = f"until {_day(made.key.expire_time)}" if made.key.expire_time else "until it is revoked"
        click.echo(
            f"The key of {whose}, valid {until}. It is shown this once. `agentserving key revoke {made.key.key_id}` "
            "ends it.", err=True,
        )  # fmt: skip

    return create


def _list(where: Where) -> click.Command:
    @click.command("list")
    @click.option("--tenant", default="", help="Of one tenant only.")
    @output_option
    @where
    def list_(connect: Connect, tenant: str, output: str) -> None:
        """List keys: whose, what for, until when. Never the keys themselves."""
        with connect() as client:
            if is_data(output):
                print_data({"keys": [each for page in _pages(client, tenant) for each in page]}, output)
            else:
                console.print(_table(client.list_keys(tenant), datetime.now(UTC)))

    return list_


def _pages(client: Client, tenant: str) -> Iterator[list[Any]]:
    token = ""
    while True:
        page = client.run(as_data(key_operations.list_keys_page(tenant, page_token=token)))
        yield page["keys"]
        token = page["next_page_token"]
        if not token:
            return


def _table(keys: Iterable[ApiKey], now: datetime) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("KEY", "TENANT", "FOR", "SERVICE", "MADE", "EXPIRES", "STATE"):
        table.add_column(title, no_wrap=title not in ("FOR", "TENANT"), overflow="fold")
    for key in keys:
        whose = escape(key.tenant) if key.role is KeyRole.CLIENT else f"({key.role.name.lower()})"
        table.add_row(
            key.key_id, whose, escape(key.name), key.service_class.label or "-", _day(key.create_time),
            _day(key.expire_time) or "never", _state(key, now),
        )  # fmt: skip
    return table


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoke_time is not None:
        return f"revoked {_day(key.revoke_time)}"
    return "expired" if key.expire_time is not None and key.expire_time <= now else "valid"


def _day(when: datetime | None) -> str:
    return "" if when is None else when.strftime("%Y-%m-%d")


def _revoke(where: Where) -> click.Command:
    @click.command()
    @click.argument("key_id")
    @output_option
    @where
    def revoke(connect: Connect, key_id: str, output: str) -> None:
        """End a key. Gateways refuse it within seconds."""
        # Users paste whole keys; the secret is not sent.
        key_id = key_id.removeprefix("as_").partition("_")[0]
        with connect() as client:
            document = client.run(as_data(key_operations.revoke_key(key_id), "key"))
        if is_data(output):
            print_data(document, output)
        else:
            click.echo(f"key {key_id} is revoked")

    return revoke
