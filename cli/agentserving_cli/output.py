"""Forms of an answer: a table for people, JSON and YAML for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click
import yaml
from agentserving.client.operations import Operation
from google.protobuf import json_format

F = TypeVar("F", bound=Callable[..., Any])
# Tables of this width show all columns and whole ids.
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
    """True for the forms that programs read."""
    return output in ("json", "yaml")


def print_data(value: Any, output: str) -> None:
    """Plain values as JSON or YAML."""
    if output == "yaml":
        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip())
    else:
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def as_data(operation: Operation[Any], field: str = "") -> Operation[Any]:
    """The same operation, whose result is plain data: the response, or one field of it, as protobuf maps it to JSON.

    That form is stable for scripts: the names of the contract, 64-bit numbers as strings, zeros included.
    """

    def read(response: Any) -> Any:
        document = json_format.MessageToDict(
            response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return document[field] if field else document

    return replace(operation, read=read)
