"""Names of Envoy's extensions, and the form in which a configuration contains them. Pure."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

_TYPE = "type.googleapis.com/envoy."


def typed(kind: str, **fields: Any) -> Json:
    """A google.protobuf.Any of an Envoy message; `kind` without the leading "envoy."."""
    return {"@type": _TYPE + kind, **fields}


def extension(name: str, kind: str, **fields: Any) -> Json:
    """A named extension with its typed configuration; both names without the leading "envoy."."""
    return {"name": f"envoy.{name}", "typed_config": typed(kind, **fields)}


def seconds(value: float) -> str:
    """A google.protobuf.Duration as JSON."""
    return f"{value:g}s"


def header(name: str, value: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Json:
    """A HeaderValueOption; a value that formats to nothing adds no header."""
    return {"header": {"key": name, "value": value}, "append_action": action}
