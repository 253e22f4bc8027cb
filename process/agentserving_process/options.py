"""Settings from flags and environment variables, declared as frozen dataclasses, one dataclass a topic.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Serving:
        listen: str = option("127.0.0.1:8080", "address for clients")
        drain_s: float = option(30.0, "seconds that calls may go on after SIGTERM", least=0)

    settings = parse(Settings, prog="agentserving-gateway", description=__doc__)   # Settings.serving: Serving

Field `drain_s` is the flag --drain-s and the variable AGENTSERVING_DRAIN_S; a flag wins over the variable, the variable
over the default. An empty variable counts as unset: Kubernetes manifests and shells set variables to nothing.

argparse instead of click or pydantic-settings: the engine and sidecar images carry neither, and the field's type, its
default, its bounds and its reason stand in one line here.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import math
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
REQUIRED: Any = dataclasses.MISSING
PREFIX = "AGENTSERVING"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Option:
    help: str
    name: str
    read: Callable[[str], Any] | None
    choices: tuple[str, ...]
    least: float | None
    above: float | None
    most: float | None


def option(
    default: Any,
    help: str,
    *,
    name: str = "",
    read: Callable[[str], Any] | None = None,
    choices: Sequence[str] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> Any:
    """A field of a topic. `help` gives its unit and what it is for; REQUIRED as `default` makes it mandatory.

    name: of the flag and the variable, where the field's own does not fit.
    read: text -> value, raising ValueError; by default it follows from the field's type (str, int, float, bool, Path,
    `Path | None`, an enum by value, tuple[str, ...] separated by commas). least, most: inclusive bounds; above: an
    exclusive one.
    """
    rule = _Option(help=help, name=name, read=read, choices=tuple(choices), least=least, above=above, most=most)
    return dataclasses.field(default=default, metadata={"option": rule})


def parse(
    settings: type[T],
    *,
    prog: str,
    description: str | None = None,
    argv: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    prefix: str = PREFIX,
    version: str = "",
) -> T:
    """The settings that flags and environment describe. Exits with status 2 and one line when they make no sense.

    A field of `settings` is an option or a topic: a dataclass of options. A ValueError of a `__post_init__` is such a
    line as well: it is the place for what two options must have in common.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    if version:
        parser.add_argument("--version", action="version", version=f"{prog} {version}")
    for topic in _topics(settings):
        title = (topic.__doc__ or topic.__name__).strip().partition("\n")[0]
        group = parser if topic is settings else parser.add_argument_group(title)
        for field in _options(topic):
            group.add_argument(_flag(field), dest=field.name, help=_help(field, prefix), metavar=_metavar(field))
    given = vars(parser.parse_args(list(argv)))
    return _build(settings, parser, given, os.environ if environment is None else environment, prefix)


def _topics(settings: type[Any]) -> list[type[Any]]:
    """The dataclass itself, where it has options of its own, and those of its fields that are dataclasses."""
    hints = typing.get_type_hints(settings)
    nested = [hints[f.name] for f in dataclasses.fields(settings) if dataclasses.is_dataclass(hints[f.name])]
    return ([settings] if _options(settings) else []) + nested


def _options(topic: type[Any]) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(topic) if "option" in field.metadata]


def _build(
    topic: type[T],
    parser: argparse.ArgumentParser,
    given: Mapping[str, str | None],
    environment: Mapping[str, str],
    prefix: str,
) -> T:
    hints = typing.get_type_hints(topic)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(topic):  # type: ignore[arg-type] # T is a dataclass by contract
        kind = hints[field.name]
        if "option" not in field.metadata:
            if dataclasses.is_dataclass(kind):
                values[field.name] = _build(typing.cast(type[Any], kind), parser, given, environment, prefix)
            continue
        variable = _variable(field, prefix)
        text, source = given[field.name], _flag(field)
        if text is None and environment.get(variable):
            text, source = environment[variable], variable
        if text is not None:
            try:
                values[field.name] = _value(text, kind, field.metadata["option"])
            except ValueError as error:
                parser.error(f"{source}: {error}")
        elif field.default is dataclasses.MISSING:
            parser.error(f"{_flag(field)} is required (or the environment variable {variable})")
    try:
        return topic(**values)
    except ValueError as error:
        return _refuse(parser, error)


def _refuse(parser: argparse.ArgumentParser, error: ValueError) -> NoReturn:
    parser.error(str(error))


def _value(text: str, kind: Any, rule: _Option) -> Any:
    """ValueError says what is expected; the caller says where the text comes from."""
    if rule.choices and text not in rule.choices:
        raise ValueError(f"{text!r} is not one of {', '.join(rule.choices)}")
    value = (rule.read or _reader(kind))(text)
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_bounds(value, rule)
    return value


def _check_bounds(value: float, rule: _Option) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if rule.least is not None and value < rule.least:
        raise ValueError(f"{value} is less than {rule.least:g}")
    if rule.above is not None and value <= rule.above:
        raise ValueError(f"{value} is not greater than {rule.above:g}")
    if rule.most is not None and value > rule.most:
        raise ValueError(f"{value} is greater than {rule.most:g}")


def _reader(kind: Any) -> Callable[[str], Any]:
    arguments = [each for each in typing.get_args(kind) if each is not type(None)]
    if typing.get_origin(kind) is tuple:
        return split
    if type(None) in typing.get_args(kind) and len(arguments) == 1:
        return _reader(arguments[0])
    if kind is bool:
        return _boolean
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return lambda text: _member(kind, text)
    if kind in (int, float):
        return lambda text: _number(kind, text)
    if kind in (str, Path):
        reader: Callable[[str], Any] = kind
        return reader
    raise TypeError(f"an option of type {kind} needs `read`")


def split(text: str) -> tuple[str, ...]:
    """The parts between commas, without spaces and empty ones."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _number(kind: type[int] | type[float], text: str) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {'a whole number' if kind is int else 'a number'}") from None


def _boolean(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ValueError(f"{text!r} is neither true nor false")
    return known[text.lower()]


def _member(kind: type[enum.Enum], text: str) -> enum.Enum:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not one of {', '.join(str(each.value) for each in kind)}") from None


def _name(field: dataclasses.Field[Any]) -> str:
    name: str = field.metadata["option"].name
    return name or field.name


def _flag(field: dataclasses.Field[Any]) -> str:
    return "--" + _name(field).replace("_", "-")


def _variable(field: dataclasses.Field[Any], prefix: str) -> str:
    return f"{prefix}_{_name(field).upper()}"


def _metavar(field: dataclasses.Field[Any]) -> str:
    choices = field.metadata["option"].choices
    return "{" + ",".join(choices) + "}" if choices else _name(field).upper()


def _help(field: dataclasses.Field[Any], prefix: str) -> str:
    default = "required" if field.default is dataclasses.MISSING else f"default: {_shown(field.default)}"
    # argparse formats help texts with %.
    return f"{field.metadata['option'].help} [{_variable(field, prefix)}; {default}]".replace("%", "%%")


def _shown(default: Any) -> str:
    if isinstance(default, enum.Enum):
        return str(default.value)
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return "none" if default in ("", None) else str(default)
