"""Options of `up` for the headers in which clients name their programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from agentserving.contract.program_headers import read_ignored, read_program_headers


def _read(reader: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str], Any]:
    def read(_: click.Context, __: click.Parameter, text: str) -> Any:
        try:
            return reader(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return read


def program_header_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command `program_headers` and `ignored_program_headers`, as the contract reads them."""
    added = click.option(
        "--program-headers",
        default="",
        callback=_read(read_program_headers),
        metavar="NAME[:PARENT],...",
        help="Headers of your clients that name a program, and its parent; looked for before those of known agents.",
    )
    ignored = click.option(
        "--ignored-program-headers",
        default="",
        callback=_read(read_ignored),
        metavar="NAME,...",
        help="Headers of known agents that name no program here, such as x-session-id.",
    )
    return added(ignored(command))
