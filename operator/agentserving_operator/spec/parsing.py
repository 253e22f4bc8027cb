"""A spec from the dictionary that the API server returns, with the schema's defaults and bounds. Pure.

The API server has already checked all of it. This repeats the checks for files that are read without an API server,
and for objects that are older than the schema.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from enum import StrEnum
from typing import Any, TypeVar

from agentserving_operator.spec.fields import FieldInfo, Meta, api_fields, rules_of

T = TypeVar("T")


class SpecError(ValueError):
    """An invalid spec. `field` is the path of the offending field, `message` says what to do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


def parse(cls: type[T], data: object, path: str = "spec") -> T:
    """An API class from plain values. Raises SpecError with the path of the first invalid field."""
    if not isinstance(data, Mapping):
        raise SpecError(path, f"must be an object, not {_kind(data)}")
    known = {info.wire: info for info in api_fields(cls)}
    for name in data:
        if name not in known:
            raise SpecError(f"{path}.{name}", f"no such field; the fields are {', '.join(known)}")
    given: dict[str, Any] = {}
    for wire, info in known.items():
        if data.get(wire) is not None:
            given[info.attribute] = _value(info.type, info.meta, data[wire], f"{path}.{wire}")
        elif info.required:
            raise SpecError(f"{path}.{wire}", "is required")
    parsed = cls(**given)
    for rule in rules_of(cls):
        if rule.holds is not None and not rule.holds(parsed):
            raise SpecError(f"{path}.{rule.at}" if rule.at else path, rule.message)
    return parsed


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _value(kind: Any, meta: Meta, value: object, path: str) -> Any:
    if meta.foreign:
        return _foreign(kind, meta, value, path)
    if dataclasses.is_dataclass(kind):
        return parse(typing.cast("type[Any]", kind), value, path)
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _list(typing.get_args(kind)[0], meta, value, path)
    if origin is not None:
        return _mapping(meta, value, path)
    if kind is bool:
        if not isinstance(value, bool):
            raise SpecError(path, f"must be true or false, not {value!r}")
        return value
    if kind is int:
        return _integer(meta, value, path)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        if value not in [each.value for each in kind]:
            raise SpecError(path, f"must be one of {', '.join(each.value for each in kind)}, not {value!r}")
        return kind(str(value))
    return _text(meta, value, path)


def _integer(meta: Meta, value: object, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpecError(path, f"must be a whole number, not {value!r}")
    if meta.minimum is not None and value < meta.minimum:
        raise SpecError(path, f"must be at least {meta.minimum}, not {value}")
    if meta.maximum is not None and value > meta.maximum:
        raise SpecError(path, f"must be at most {meta.maximum}, not {value}")
    return value


def _text(meta: Meta, value: object, path: str) -> str:
    if meta.int_or_string and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise SpecError(path, f"must be a string, not {value!r}")
    if meta.min_length is not None and len(value) < meta.min_length:
        raise SpecError(path, f"needs at least {meta.min_length} characters, has {len(value)}")
    if meta.max_length is not None and len(value) > meta.max_length:
        raise SpecError(path, f"may have at most {meta.max_length} characters, has {len(value)}")
    # In RE2, which the API server uses, $ is the end of the text; in Python it also matches before a last newline.
    if meta.pattern and re.search(meta.pattern.removesuffix("$") + r"\Z", value) is None:
        raise SpecError(path, f"{value!r} does not match {meta.pattern}")
    return value


def _list(kind: Any, meta: Meta, value: object, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise SpecError(path, f"must be a list, not {_kind(value)}")
    if meta.max_items is not None and len(value) > meta.max_items:
        raise SpecError(path, f"may have at most {meta.max_items} entries, has {len(value)}")
    found: list[Any] = []
    seen: set[object] = set()
    for index, each in enumerate(value):
        here = f"{path}[{index}]"
        found.append(_value(kind, meta, each, here))
        if meta.list_type in ("set", "map"):
            key = tuple(each[name] for name in meta.list_map_keys) if meta.list_type == "map" else each
            if key in seen:
                raise SpecError(here, f"appears twice: {each!r}")
            seen.add(key)
    return tuple(found)


def _foreign(kind: Any, meta: Meta, value: object, path: str) -> Any:
    if typing.get_origin(kind) is not tuple:
        if not isinstance(value, Mapping):
            raise SpecError(path, f"must be an object, not {_kind(value)}")
        return dict(value)
    if not isinstance(value, list | tuple):
        raise SpecError(path, f"must be a list, not {_kind(value)}")
    if meta.max_items is not None and len(value) > meta.max_items:
        raise SpecError(path, f"may have at most {meta.max_items} entries, has {len(value)}")
    seen: set[object] = set()
    for index, each in enumerate(value):
        if not isinstance(each, Mapping):
            raise SpecError(f"{path}[{index}]", f"must be an object, not {_kind(each)}")
        for key in meta.list_map_keys:
            if not isinstance(each.get(key), str):
                raise SpecError(f"{path}[{index}].{key}", "is required, a string")
        key_of = tuple(each[key] for key in meta.list_map_keys)
        if key_of in seen:
            raise SpecError(f"{path}[{index}]", f"appears twice: {', '.join(map(str, key_of))}")
        if key_of:
            seen.add(key_of)
    return tuple(dict(each) for each in value)


def _mapping(meta: Meta, value: object, path: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise SpecError(path, f"must be an object of strings, not {_kind(value)}")
    if meta.max_properties is not None and len(value) > meta.max_properties:
        raise SpecError(path, f"may have at most {meta.max_properties} entries, has {len(value)}")
    return {str(key): _text(meta, each, f"{path}.{key}") for key, each in value.items()}


def plain(value: Any) -> Any:
    """Plain JSON values of an API class, which `parse` reads back. Absent fields are left out."""
    if dataclasses.is_dataclass(value):
        pairs = [(info, getattr(value, info.attribute)) for info in api_fields(type(value))]
        return {info.wire: plain(each) for info, each in pairs if each is not None}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return value


def default_of(info: FieldInfo) -> Any:
    """The field's default as plain JSON; MISSING when it has none."""
    default = info.meta.default
    if default is MISSING or default is None:
        return MISSING
    if isinstance(default, type):
        # Complete: the API server evaluates an object's rules on its default before it fills in the members' defaults.
        return plain(default())
    return plain(default)
