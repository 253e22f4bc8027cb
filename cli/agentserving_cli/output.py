"""Forms of an answer: a table for people, JSON and YAML for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click
import yaml
from google.protobuf import json_format

F = TypeVar("F", bound=Callable[..., Any])
# Tables of this width have all columns and whole ids.
WIDE = 400

_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "wide", "json", "yaml"]),
    default="table",
    show_default=True,
    help="Form of the answer; wide: all columns, whatever the terminal's width.",
)


def output_option(command: F) -> F:
    """``-o``."""
    return _option(command)


def is_data(output: str) -> bool:
    """JSON or YAML is wanted."""
    return output in ("json", "yaml")


def print_data(value: Any, output: str) -> None:
    """Plain values as JSON or YAML."""
    if output == "yaml":
        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip())
    else:
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_message(message: Any, output: str) -> None:
    """As protobuf writes JSON: 64-bit numbers are strings; zeros are there, too."""
    told = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    print_data(told, output)
