"""A value that fits a JSON schema: arguments of tool calls, structured output. Pure: randomness is an argument.

Required properties alone are given, unless a schema asks for more of them. Values that a schema names (const, enum,
default, examples) come first. What is not understood (`not`, `if`, `contains`, dynamic references) is not looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import rstr

if TYPE_CHECKING:
    from random import Random

# Deeper values are those of a schema that requires itself.
MAX_DEPTH = 24
# Longest text and list that a schema may require: one tool must not fill the context.
MAX_LENGTH = 4096
_TRIES = 20
_FORMATS = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1M",
    "email": "someone@example.com",
    "idn-email": "someone@example.com",
    "hostname": "example.com",
    "idn-hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "url": "https://example.com/",
    "iri": "https://example.com/",
    "uri-reference": "/path",
    "iri-reference": "/path",
    "uri-template": "/path",
    "uuid": "3f2b8c1e-5d4a-4b6f-8e7d-9c0a1b2c3d4e",
    "json-pointer": "/path",
    "relative-json-pointer": "0",
    "regex": "a+",
    "binary": "",
    "byte": "YQ==",
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# A name of a property and its schema -> a value that fits, or None.
Hint = Callable[[str, Mapping[str, Any]], object]


class NoValueError(Exception):
    """No value was found; the message says for which part of the schema."""


def value(schema: object, rng: Random, hint: Hint = lambda name, schema: None) -> Any:
    """A value that fits `schema` (draft 2020-12 and the forms of older drafts). Raises NoValueError."""
    return _Maker(schema, rng, hint).of(schema, 0)


class _Maker:
    def __init__(self, root: object, rng: Random, hint: Hint) -> None:
        self._root, self._rng, self._hint = root, rng, hint

    def of(self, schema: object, depth: int) -> Any:
        if schema is True:
            return {}
        if not isinstance(schema, Mapping):
            raise NoValueError(f"nothing fits the schema {schema!r}")
        if depth > MAX_DEPTH:
            raise NoValueError("the schema requires itself")
        schema = self._resolved(schema, depth)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._rng.choice(list(schema["enum"]))
        for combined in ("anyOf", "oneOf"):
            if schema.get(combined):
                return self._alternative(schema, combined, depth)
        return self._of_type(schema, depth)

    def _resolved(self, schema: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
        """The schema without references and allOf."""
        for _ in range(MAX_DEPTH):
            if "$ref" in schema:
                rest = {key: each for key, each in schema.items() if key != "$ref"}
                schema = _merged(self._referenced(schema["$ref"]), rest)
            elif schema.get("allOf"):
                whole: Mapping[str, Any] = {key: each for key, each in schema.items() if key != "allOf"}
                for part in schema["allOf"]:
                    if isinstance(part, Mapping):
                        whole = _merged(whole, self._resolved(part, depth))
                schema = whole
            else:
                return schema
        raise NoValueError("a reference leads to itself")

    def _referenced(self, reference: object) -> Mapping[str, Any]:
        found: Any = self._root
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise NoValueError(f"the reference {reference!r} leads outside the schema")
        for step in reference[1:].split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdigit() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, Mapping) and name in found:
                found = found[name]
            else:
                raise NoValueError(f"the reference {reference!r} leads nowhere")
        return found if isinstance(found, Mapping) else {}

    def _alternative(self, schema: Mapping[str, Any], combined: str, depth: int) -> Any:
        """The first alternative that has a value, null last: agents mean the others."""
        rest = {key: each for key, each in schema.items() if key != combined}
        last = NoValueError("no alternative has a value")
        for each in sorted(schema[combined], key=_is_null):
            try:
                return self.of(_merged(rest, each) if isinstance(each, Mapping) else each, depth + 1)
            except NoValueError as error:
                last = error
        raise last

    def _of_type(self, schema: Mapping[str, Any], depth: int) -> Any:
        kind = _kind(schema)
        for given in (schema.get("default"), *_list(schema.get("examples"))):
            if given is not None and _has_kind(given, kind) and not {"object", "array"} & {kind}:
                return given
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "integer" | "number":
                return _number(schema, whole=kind == "integer")
            case "boolean":
                # A flag that a tool must be given (run in the background, overwrite) is off.
                return False
            case "null":
                return None
            case _:
                return self._text(schema)

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        names = list(dict.fromkeys(_list(schema.get("required"))))
        needs = {**_mapping(schema.get("dependentRequired")), **_mapping(schema.get("dependencies"))}
        for name in names:
            # Grows while it is read: what a property requires may require more.
            names += [each for each in _list(needs.get(name)) if each not in names]
        least = _bound(schema.get("minProperties"), "minProperties")
        names += [name for name in properties if name not in names][: max(0, least - len(names))]
        made = {name: self._property(name, properties.get(name, {}), depth) for name in names}
        for number in range(least - len(made)):
            made[f"key{number}"] = self.of(_more(schema), depth + 1)
        return made

    def _property(self, name: str, schema: object, depth: int) -> Any:
        hinted = self._hint(name, schema) if isinstance(schema, Mapping) else None
        return self.of(schema, depth + 1) if hinted is None else hinted

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        items = schema.get("items", True)
        first = list(schema.get("prefixItems") or (items if isinstance(items, list) else ()))
        rest = schema.get("additionalItems", True) if isinstance(items, list) else items
        least = _bound(schema.get("minItems"), "minItems")
        most = min(_bound(schema.get("maxItems", MAX_LENGTH), "maxItems"), MAX_LENGTH)
        # One entry is more useful to a tool than none.
        wanted = min(max(least, len(first), 0 if rest is False else 1), most)
        made: list[Any] = []
        for _ in range(wanted * _TRIES):
            if len(made) == wanted:
                break
            entry = first[len(made)] if len(made) < len(first) else rest
            each = self.of(entry, depth + 1)
            if schema.get("uniqueItems") and each in made:
                each = self._other(entry, each, made, depth)
                if each in made:
                    continue
            made.append(each)
        if len(made) < least:
            raise NoValueError(f"no {least} different entries")
        return made

    def _other(self, entry: object, each: Any, made: list[Any], depth: int) -> Any:
        """A larger number, or the other boolean; texts and enumerated values are drawn again."""
        if not isinstance(entry, Mapping) or not isinstance(each, int | float) or {"enum", "const"} & entry.keys():
            return each
        if isinstance(each, bool):
            return not each
        numbers = [found for found in made if isinstance(found, int | float)]
        return self.of(_merged(entry, {"minimum": max(numbers) + 1}), depth)

    def _text(self, schema: Mapping[str, Any]) -> str:
        least = _bound(schema.get("minLength"), "minLength")
        most = schema.get("maxLength", MAX_LENGTH)
        pattern = schema.get("pattern")
        if isinstance(pattern, str):
            return self._matching(pattern, least, most)
        text = _FORMATS.get(str(schema.get("format")), "")
        if not text:
            text = "".join(self._rng.choice(_LETTERS) for _ in range(max(least, 6)))[: max(least, most)]
        if not least <= len(text) <= most:
            raise NoValueError(f"no text of {least} to {most} characters in the format {schema.get('format')!r}")
        return text

    def _matching(self, pattern: str, least: int, most: int) -> str:
        try:
            # Repetitions without an end are drawn up to a hundred times; a number is taken at its word.
            if any(int(number) > MAX_LENGTH for number in re.findall(r"\{(\d{1,9})", pattern)):
                raise NoValueError(f"the pattern {pattern!r} is too long")
            matches = re.compile(pattern)
            for _ in range(_TRIES):
                text = rstr.Rstr(self._rng).xeger(pattern)
                if least <= len(text) <= most and matches.search(text):
                    return text
        except (re.error, KeyError, ValueError, OverflowError) as error:
            raise NoValueError(f"the pattern {pattern!r} is not understood: {error}") from error
        raise NoValueError(f"no text of {least} to {most} characters found for the pattern {pattern!r}")


def _kind(schema: Mapping[str, Any]) -> str:
    """The type of the value to make; of several, the first that is not null."""
    named = schema.get("type")
    kinds = [named] if isinstance(named, str) else [each for each in _list(named) if isinstance(each, str)]
    for each in sorted(kinds, key=lambda kind: kind == "null"):
        return each
    for kind, words in (
        ("object", ("properties", "required", "minProperties", "additionalProperties", "patternProperties")),
        ("array", ("items", "prefixItems", "minItems", "uniqueItems")),
        ("number", ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    ):
        if any(word in schema for word in words):
            return kind
    return "string"


def _has_kind(given: object, kind: str) -> bool:
    if isinstance(given, bool):
        return kind == "boolean"
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
    return isinstance(given, types.get(kind, ()))  # type: ignore[arg-type]


def _number(schema: Mapping[str, Any], *, whole: bool) -> int | float:
    """The first number that fits, from 1, 0 and the neighbourhood of the bounds."""
    step = schema.get("multipleOf") or (1 if whole else 0)
    low, above = _low(schema)
    high, below = _high(schema)
    bounds = [each for each in (low, high) if each is not None]
    anchors = [1, 0, *bounds, sum(bounds) / 2 if len(bounds) == 2 else 0.5]
    grid = step or 0.5
    steps = sorted(range(-_TRIES, _TRIES + 1), key=abs)
    for near in (found for anchor in anchors for found in (anchor, *(_grid(anchor, grid, k) for k in steps))):
        in_low = low is None or near > low or (near == low and not above)
        in_high = high is None or near < high or (near == high and not below)
        if in_low and in_high and (not step or (near / step).is_integer()) and (not whole or float(near).is_integer()):
            return int(near) if whole else near
    raise NoValueError(f"no number fits {dict(schema)!r}")


def _grid(anchor: float, grid: float, steps: int) -> float:
    return (math.floor(anchor / grid) + steps) * grid


def _low(schema: Mapping[str, Any]) -> tuple[float | None, bool]:
    """(bound, whether the value must be above it); draft 4 says the latter with a boolean."""
    return _tighter(schema.get("minimum"), schema.get("exclusiveMinimum"), max)


def _high(schema: Mapping[str, Any]) -> tuple[float | None, bool]:
    return _tighter(schema.get("maximum"), schema.get("exclusiveMaximum"), min)


def _tighter(bound: Any, exclusive: Any, choose: Callable[[float, float], float]) -> tuple[float | None, bool]:
    if isinstance(exclusive, bool) or exclusive is None:
        return bound, exclusive is True
    if bound is None or (choose(bound, exclusive) == exclusive):
        return exclusive, True
    return bound, False


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema for what fits both, as far as their keywords can be put together."""
    whole = {**one, **other}
    if "properties" in one and "properties" in other:
        whole["properties"] = {**one["properties"], **other["properties"]}
        for name in one["properties"].keys() & other["properties"].keys():
            both = one["properties"][name], other["properties"][name]
            if all(isinstance(each, Mapping) for each in both):
                whole["properties"][name] = _merged(*both)
    if "required" in one and "required" in other:
        whole["required"] = [*one["required"], *other["required"]]
    for word, choose in (("minimum", max), ("minLength", max), ("minItems", max), ("maximum", min), ("maxLength", min)):
        if word in one and word in other:
            whole[word] = choose(one[word], other[word])
    return whole


def _more(schema: Mapping[str, Any]) -> object:
    """The schema of properties without a name."""
    more = schema.get("additionalProperties", True)
    if more is False:
        raise NoValueError("more properties are required than are allowed")
    return more


def _bound(number: object, name: str) -> int:
    if number is None:
        return 0
    if not isinstance(number, int | float) or number < 0:
        raise NoValueError(f"{name} is {number!r}")
    if number > MAX_LENGTH and name.startswith("min"):
        raise NoValueError(f"{name} is {number}: at most {MAX_LENGTH} are made")
    return int(number)


def _is_null(schema: object) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "null"


def _list(found: object) -> Sequence[Any]:
    return found if isinstance(found, list) else ()


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}
