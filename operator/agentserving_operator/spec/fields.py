"""How a field of the API is described: once, on a dataclass, for both the CRD's schema and parsing.

A field carries its documentation, default and bounds as metadata; a class carries its CEL rules in `RULES`. Attribute
names are snake_case in Python and camelCase on the wire, unless a field gives its wire name (`kvOffloadGiB`).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

METADATA_KEY = "api"
# A quantity of Kubernetes without exponents.
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$"
# What rules over immutable fields say, unless the class has a CANNOT_BE_CHANGED of its own.
CANNOT_BE_CHANGED = "cannot be changed: create a new AgentServingCluster"
DNS_SUBDOMAIN = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"


@dataclass(frozen=True, slots=True)
class Rule:
    """A CEL rule on an object, and the same in Python.

    `holds` takes the parsed dataclass; None for rules over `oldSelf`, which only the API server knows.
    `at` is the wire name of the offending member, "" for the object itself.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool] | None = None
    at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """Bounds of one field. Lengths in characters; `default` MISSING = required, None = may be absent.

    `wire`: its name on the wire, where that is not the attribute's in camelCase.
    """

    doc: str
    default: Any = MISSING
    wire: str = ""
    minimum: int | None = None
    maximum: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str = ""
    max_items: int | None = None
    list_type: str = ""
    list_map_keys: tuple[str, ...] = ()
    max_properties: int | None = None
    immutable: bool = False
    format: str = ""
    int_or_string: bool = False
    # Kubernetes' own objects: stored as they are, and checked by the API server when pods are made of them.
    foreign: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldInfo:
    """A field of an API class with its types resolved."""

    attribute: str
    wire: str
    type: Any
    optional: bool
    meta: Meta

    @property
    def required(self) -> bool:
        """Whether a user must set it."""
        return self.meta.default is MISSING


def wire_name(attribute: str) -> str:
    """The attribute's name in camelCase."""
    head, *rest = attribute.split("_")
    return head + "".join(part.capitalize() for part in rest)


def api_fields(cls: type) -> list[FieldInfo]:
    """The fields of an API class, in the order of their declaration."""
    hints = typing.get_type_hints(cls)
    found = []
    for each in dataclasses.fields(cls):
        hint, optional = hints[each.name], False
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
            (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
            optional = True
        meta: Meta = each.metadata[METADATA_KEY]
        wire = meta.wire or wire_name(each.name)
        found.append(FieldInfo(attribute=each.name, wire=wire, type=hint, optional=optional, meta=meta))
    return found


def rules_of(cls: type) -> tuple[Rule, ...]:
    """The class's RULES, and a rule for each immutable field."""
    own: tuple[Rule, ...] = getattr(cls, "RULES", ())
    hint: str = getattr(cls, "CANNOT_BE_CHANGED", CANNOT_BE_CHANGED)
    return (*own, *(_immutable(each, hint) for each in api_fields(cls) if each.meta.immutable))


def _immutable(info: FieldInfo, hint: str) -> Rule:
    name = info.wire
    cel = f"self.{name} == oldSelf.{name}"
    if info.meta.default is None:
        cel = f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || {cel})"
    return Rule(cel, f"{name} {hint}", at=name)


def _field(meta: Meta) -> Any:
    metadata = {METADATA_KEY: meta}
    if meta.default is MISSING:
        return dataclasses.field(metadata=metadata)
    if isinstance(meta.default, type):
        return dataclasses.field(default_factory=meta.default, metadata=metadata)
    if isinstance(meta.default, Mapping):
        return dataclasses.field(default_factory=lambda: dict(meta.default), metadata=metadata)
    return dataclasses.field(default=meta.default, metadata=metadata)


def text(
    doc: str, max_length: int, *, default: Any = MISSING, min_length: int | None = None, pattern: str = "",
    immutable: bool = False, format: str = "",
) -> Any:  # fmt: skip
    """A string. `format` as in OpenAPI ("date-time")."""
    return _field(
        Meta(
            doc=doc, default=default, min_length=min_length, max_length=max_length, pattern=pattern,
            immutable=immutable, format=format,
        )
    )  # fmt: skip


def quantity(doc: str, *, default: Any = MISSING, immutable: bool = False) -> Any:
    """A quantity such as 500m or 8Gi; a whole number may be written without quotes. Parsed to a string."""
    return _field(
        Meta(doc=doc, default=default, max_length=32, pattern=QUANTITY, immutable=immutable, int_or_string=True)
    )  # fmt: skip


def integer(
    doc: str, minimum: int, maximum: int, *, default: Any = MISSING, wire: str = "", immutable: bool = False
) -> Any:
    """A whole number between bounds, both included. The API has no other numbers."""
    return _field(Meta(doc=doc, default=default, minimum=minimum, maximum=maximum, wire=wire, immutable=immutable))


def flag(doc: str, *, default: bool, immutable: bool = False) -> Any:
    """True or false."""
    return _field(Meta(doc=doc, default=default, immutable=immutable))


def flag_or_absent(doc: str, *, wire: str = "") -> Any:
    """True, false, or absent."""
    return _field(Meta(doc=doc, default=None, wire=wire))


def choice(doc: str, *, default: Any = MISSING, immutable: bool = False) -> Any:
    """One of a StrEnum's values."""
    return _field(Meta(doc=doc, default=default, immutable=immutable))


def struct(doc: str, *, default: Any = MISSING, immutable: bool = False) -> Any:
    """An object. `default` is its class (an object of all its defaults) or None (absent)."""
    return _field(Meta(doc=doc, default=default, immutable=immutable))


def items(
    doc: str, max_items: int, *, list_type: str = "atomic", keys: tuple[str, ...] = (), default: Any = (),
    max_length: int | None = None, min_length: int | None = None, pattern: str = "",
) -> Any:  # fmt: skip
    """A list of structs, or of strings of at most `max_length`; `list_type` is atomic, set or map (with `keys`)."""
    return _field(
        Meta(
            doc=doc, default=default, max_items=max_items, list_type=list_type, list_map_keys=keys,
            min_length=min_length, max_length=max_length, pattern=pattern,
        )
    )  # fmt: skip


def foreign(doc: str, max_properties: int = 64) -> Any:
    """An object of Kubernetes' own API, as plain values; absent by default."""
    return _field(Meta(doc=doc, default=None, foreign=True, max_properties=max_properties))


def foreign_items(doc: str, max_items: int, *, keys: tuple[str, ...] = ()) -> Any:
    """A list of such objects, absent by default; a map where `keys` (strings, required) are given, else atomic."""
    kind = "map" if keys else "atomic"
    return _field(Meta(doc=doc, default=None, foreign=True, max_items=max_items, list_type=kind, list_map_keys=keys))


def mapping_or_absent(doc: str, max_properties: int, max_length: int) -> Any:
    """Strings by string, as `mapping`; absent by default."""
    return _field(Meta(doc=doc, default=None, max_properties=max_properties, max_length=max_length))


def mapping(doc: str, max_properties: int, max_length: int, *, default: Mapping[str, str] | None = None) -> Any:
    """Strings by string; values have at most `max_length` characters."""
    return _field(Meta(doc=doc, default=dict(default or {}), max_properties=max_properties, max_length=max_length))
