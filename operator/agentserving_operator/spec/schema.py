"""The OpenAPI schema of an API class for a CustomResourceDefinition: structural, with defaults and CEL. Pure."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import MISSING
from enum import StrEnum
from typing import Any

from agentserving_operator.spec.fields import FieldInfo, Meta, Rule, api_fields, rules_of
from agentserving_operator.spec.parsing import default_of


class UnboundedFieldError(TypeError):
    """A field without a bound. The API server's estimate of a CEL rule's cost needs one."""


def object_schema(cls: type, *, defaults: bool = True) -> dict[str, Any]:
    """Schema of a class. Raises UnboundedFieldError when a field lacks a bound."""
    fields = api_fields(cls)
    schema: dict[str, Any] = {"type": "object", "description": " ".join((cls.__doc__ or "").split())}
    if required := [info.wire for info in fields if info.required]:
        schema["required"] = required
    schema["properties"] = {info.wire: _field(cls, info, defaults) for info in fields}
    if rules := rules_of(cls):
        schema["x-kubernetes-validations"] = [validation(rule) for rule in rules]
    return schema


def validation(rule: Rule) -> dict[str, Any]:
    """A rule in the API server's form."""
    entry = {"rule": rule.cel, "message": rule.message}
    if rule.at:
        entry["fieldPath"] = f".{rule.at}"
    return entry


def _field(cls: type, info: FieldInfo, defaults: bool) -> dict[str, Any]:
    schema = _value(f"{cls.__name__}.{info.attribute}", info.type, info.meta, defaults)
    schema["description"] = info.meta.doc
    default = default_of(info)
    if defaults and default is not MISSING:
        schema["default"] = default
    return schema


def _value(name: str, kind: Any, meta: Meta, defaults: bool) -> dict[str, Any]:
    if meta.foreign:
        return _foreign(name, kind, meta)
    if dataclasses.is_dataclass(kind):
        return object_schema(typing.cast(type, kind), defaults=defaults)
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _list(name, typing.get_args(kind)[0], meta, defaults)
    if origin is not None:
        _bounded(name, meta.max_properties, meta.max_length)
        values = {"type": "string", "maxLength": meta.max_length}
        return {"type": "object", "maxProperties": meta.max_properties, "additionalProperties": values}
    if kind is bool:
        return {"type": "boolean"}
    if kind is int:
        _bounded(name, meta.minimum, meta.maximum)
        return {"type": "integer", "format": "int64", "minimum": meta.minimum, "maximum": meta.maximum}
    if issubclass(kind, StrEnum):
        return {"type": "string", "enum": [each.value for each in kind]}
    return _text(name, meta)


def _text(name: str, meta: Meta) -> dict[str, Any]:
    _bounded(name, meta.max_length)
    schema: dict[str, Any] = {"type": "string", "maxLength": meta.max_length}
    if meta.int_or_string:
        # Kubernetes' own form for quantities. The pattern applies to strings, the minimum to numbers.
        del schema["type"]
        schema |= {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}], "minimum": 0}
    if meta.min_length is not None:
        schema["minLength"] = meta.min_length
    if meta.pattern:
        schema["pattern"] = meta.pattern
    if meta.format:
        schema["format"] = meta.format
    return schema


def _list(name: str, kind: Any, meta: Meta, defaults: bool) -> dict[str, Any]:
    _bounded(name, meta.max_items, meta.list_type or None)
    schema: dict[str, Any] = {
        "type": "array",
        "maxItems": meta.max_items,
        "x-kubernetes-list-type": meta.list_type,
        "items": _value(name, kind, meta, defaults),
    }
    if meta.list_map_keys:
        schema["x-kubernetes-list-map-keys"] = list(meta.list_map_keys)
    return schema


def _foreign(name: str, kind: Any, meta: Meta) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    if typing.get_origin(kind) is not tuple:
        _bounded(name, meta.max_properties)
        return schema | {"maxProperties": meta.max_properties}
    _bounded(name, meta.max_items)
    if meta.list_map_keys:
        schema["required"] = list(meta.list_map_keys)
        schema["properties"] = {
            key: {"type": "string", "maxLength": 253, "description": "Identifies the entry."}
            for key in meta.list_map_keys
        }
    found = {"type": "array", "maxItems": meta.max_items, "x-kubernetes-list-type": meta.list_type, "items": schema}
    return found | ({"x-kubernetes-list-map-keys": list(meta.list_map_keys)} if meta.list_map_keys else {})


def _bounded(name: str, *bounds: object) -> None:
    if any(bound is None for bound in bounds):
        raise UnboundedFieldError(f"{name} has no bound: give it one in its field's description")
