"""Values fit the schemas that they are made for, as jsonschema judges."""

from __future__ import annotations

import random
from typing import Any

import jsonschema
import pytest
from agentserving_simulator.answers.schema_values import NoValueError, value
from hypothesis import given, settings
from hypothesis import strategies as st

BOUNDS = st.fixed_dictionaries(
    {},
    optional={
        "minimum": st.integers(-20, 20),
        "maximum": st.integers(-20, 20),
        "exclusiveMinimum": st.integers(-20, 20),
        "exclusiveMaximum": st.integers(-20, 20),
        "multipleOf": st.integers(1, 7),
    },
)
LENGTHS = st.fixed_dictionaries({}, optional={"minLength": st.integers(0, 9), "maxLength": st.integers(0, 9)})
PATTERNS = st.sampled_from(
    ["^[a-z]+-[0-9]{2,4}$", "^(GET|POST)$", r"^\d{4}-\d{2}$", "a.c", r"^\S+@\S+\.[a-z]+$", "^https?://", "[^/]+"]
)
FORMATS = st.sampled_from(["date", "date-time", "email", "uri", "uuid", "ipv4", "unknown"])
SCALARS = st.one_of(
    BOUNDS.map(lambda more: {"type": "integer", **more}),
    BOUNDS.map(lambda more: {"type": "number", **more}),
    LENGTHS.map(lambda more: {"type": "string", **more}),
    PATTERNS.map(lambda pattern: {"type": "string", "pattern": pattern}),
    FORMATS.map(lambda name: {"type": "string", "format": name}),
    st.lists(st.integers() | st.text(max_size=3), min_size=1, max_size=3).map(lambda each: {"enum": each}),
    st.sampled_from([{"const": {"a": 1}}, {"type": "boolean"}, {"type": "null"}, {"type": ["null", "integer"]}, {}]),
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(st.sampled_from("abcdef"), inner, max_size=4)

    def made(found: dict[str, Any], required: list[str], closed: bool, least: int) -> dict[str, Any]:
        names = [name for name in required if name in found or not closed]
        more = {"additionalProperties": False} if closed else {"minProperties": least}
        return {"type": "object", "properties": found, "required": names, **more}

    required = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=4)
    return st.builds(made, properties, required, st.booleans(), st.integers(0, 6))


def arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
        inner, st.integers(0, 3), st.integers(0, 2),
    )  # fmt: skip


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: (
        objects(inner)
        | arrays(inner)
        | st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each})
        | st.builds(lambda each: {"$ref": "#/$defs/x~1y", "$defs": {"x/y": each}}, inner)
    ),
    max_leaves=12,
)


def rooted(schema: dict[str, Any]) -> dict[str, Any]:
    """References are to the root's definitions, so those of inner schemas are moved there."""
    definitions: dict[str, Any] = {}

    def moved(found: Any) -> Any:
        if isinstance(found, list):
            return [moved(each) for each in found]
        if not isinstance(found, dict) or "const" in found:
            return found
        if "$defs" in found:
            name = f"d{len(definitions)}"
            definitions[name] = None
            definitions[name] = moved(found["$defs"]["x/y"])
            return {"$ref": f"#/$defs/{name}"}
        return {key: moved(each) for key, each in found.items()}

    return {**moved(schema), "$defs": definitions}


@given(SCHEMAS.map(rooted), st.integers(0, 1000))
@settings(max_examples=400, deadline=None)
def test_a_value_fits_its_schema(schema: dict[str, Any], seed: int) -> None:
    try:
        made = value(schema, random.Random(seed))
    except NoValueError:
        # Bounds that exclude each other. That they are rare is held by the tests below.
        return
    jsonschema.Draft202012Validator(schema).validate(made)


@given(st.integers(-1000, 1000), st.integers(0, 30), st.integers(1, 9), st.booleans(), st.booleans())
@settings(deadline=None)
def test_a_number_is_found_wherever_there_is_one(low: int, width: int, step: int, above: bool, below: bool) -> None:
    names = ("exclusiveMinimum" if above else "minimum", "exclusiveMaximum" if below else "maximum")
    schema = {"type": "integer", names[0]: low, names[1]: low + width, "multipleOf": step}
    exists = any(each % step == 0 for each in range(low + above, low + width + 1 - below))
    if exists:
        jsonschema.validate(value(schema, random.Random(0)), schema)
    else:
        with pytest.raises(NoValueError, match="no number fits"):
            value(schema, random.Random(0))


# Of real agents and of what their schema libraries write.
REAL: list[dict[str, Any]] = [
    # Claude Code's Agent, Edit and TodoWrite.
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "todos": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "content": {"type": "string", "minLength": 1},
                        "status": {"type": "string", "enum": ["pending", "in_progress", "completed"]},
                    },
                    "required": ["content", "status"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["todos"],
        "additionalProperties": False,
    },
    # pydantic's: references, a union with null, a default.
    {
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}, "default": []},
                    "parent": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}], "default": None},
                },
                "required": ["name"],
            }
        },
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/Node"}, "limit": {"type": "integer", "default": 10}},
        "required": ["root", "limit"],
    },
    # zod's: a discriminated union, a literal.
    {
        "type": "object",
        "properties": {
            "action": {
                "oneOf": [
                    {
                        "type": "object",
                        "properties": {"kind": {"const": "move"}, "to": {"type": "number", "minimum": 3}},
                        "required": ["kind", "to"],
                    },
                    {"type": "object", "properties": {"kind": {"const": "stop"}}, "required": ["kind"]},
                ]
            }
        },
        "required": ["action"],
    },
    {"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"type": "integer", "minimum": 5}}}]},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "string"}], "items": False},
    {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 3},
    {"type": "array", "items": {"type": "integer", "minimum": 3, "maximum": 5}, "uniqueItems": True, "minItems": 3},
    {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "minItems": 2},
    {"type": "object", "properties": {"a": {}}, "required": ["a"], "dependentRequired": {"a": ["b"], "b": ["c"]}},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.25},
    {"type": "number", "multipleOf": 0.1, "minimum": 7.05},
    {"type": "string", "format": "date-time"},
    {"type": ["string", "null"], "minLength": 2},
    True,  # type: ignore[list-item]
]


@pytest.mark.parametrize("schema", REAL)
def test_schemas_of_real_tools_have_a_value(schema: dict[str, Any]) -> None:
    for seed in range(20):
        jsonschema.Draft202012Validator(schema).validate(value(schema, random.Random(seed)))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (False, "nothing fits"),
        ({"$ref": "https://example.com/schema"}, "leads outside"),
        ({"$ref": "#/$defs/nothing"}, "leads nowhere"),
        ({"$ref": "#"}, "leads to itself"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "requires itself"),
        ({"type": "string", "minLength": 10**9}, "at most"),
        ({"type": "string", "pattern": "(", "minLength": 1}, "not understood"),
        ({"type": "string", "pattern": "^a{100000}$"}, "too long"),
        ({"type": "string", "pattern": "^a$", "minLength": 2}, "no text of 2"),
        ({"type": "array", "items": {"const": 1}, "uniqueItems": True, "minItems": 9, "maxItems": 9}, "no 9 different"),
        ({"type": "object", "minProperties": 1, "additionalProperties": False}, "more properties"),
    ],
)
def test_what_has_no_value_is_told_with_its_reason(schema: object, reason: str) -> None:
    with pytest.raises(NoValueError, match=reason):
        value(schema, random.Random(0))
