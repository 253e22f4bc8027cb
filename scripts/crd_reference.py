"""docs/crd.md from the generated CustomResourceDefinitions: every field of the spec, its type, default and meaning.

Prints the page; `make crd` writes it, and tests/docs compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FILES = Path(__file__).parents[1] / "charts" / "agentserving" / "files"
HEAD = """# AgentServingCluster reference

Fields of `spec`, generated from the CustomResourceDefinition (`make crd`). `kubectl explain asc.spec` shows the same in
a cluster. **Required** fields have no default; "-" is an optional field that is absent by default.

`agentserving.io/v1alpha1` and `agentserving.io/v1beta1` have the same fields and defaults; an object that was made with
one of them can be read and changed with the other. Use v1alpha1 in manifests as long as you may roll back to a chart
without v1beta1 ([upgrading](upgrade.md#versions-of-the-api)); everything here does.

"""
TEMPLATES = """
## Pod templates

The fields of `engine.template`, `controlPlane.template`, `gateway.template` and `store.etcd.template`; examples and
what may not be changed are on the page about [pods](pods.md).

"""
TENANTS = """
## AgentServingTenant

What a tenant is entitled to in one cluster. The operator sets it at the control plane, and reports so by the condition
Ready. Deleting the object gives the tenant weight 1 and no bounds again; its keys and programs stay. Tenants without an
object have weight 1 and no bounds.

"""


def rows(schema: dict[str, Any], path: str = "spec", required: bool = False) -> Iterator[tuple[str, str, str, str]]:
    """(path, type, default, description) of a field and of all fields below it, in the order of the schema."""
    if path != "spec":
        yield path, _type(schema), _default(schema, required), _one_line(schema.get("description", ""))
    if path != "spec" and path.endswith(".template"):
        # The same in several places: in a table of its own.
        return
    inner, prefix = schema, path
    if schema.get("type") == "array":
        inner, prefix = schema["items"], path + "[]"
    for name, field in inner.get("properties", {}).items():
        yield from rows(field, f"{prefix}.{name}", name in inner.get("required", []))


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind = "integer or string" if schema.get("x-kubernetes-int-or-string") else str(schema.get("type", "any"))
    if kind == "array":
        kind = f"list of {schema['items'].get('type', 'any')}"
    bounds = [str(schema[key]) for key in ("minimum", "maximum") if key in schema]
    return f"{kind}, {' to '.join(bounds)}" if len(bounds) == 2 else kind


def _default(schema: dict[str, Any], required: bool) -> str:
    if schema.get("properties"):
        return "**required**" if required else "-"  # the defaults of its fields apply
    if "default" in schema:
        return f"`{json.dumps(schema['default'])}`"
    return "**required**" if required else "-"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def page() -> str:
    clusters, tenants = _table(_spec("agentservingclusters")), _table(_spec("agentservingtenants"))
    return f"{HEAD}{clusters}{TEMPLATES}{_table(_template())}{TENANTS}{tenants}"


def _spec(plural: str) -> dict[str, Any]:
    document = yaml.safe_load((FILES / f"{plural}.yaml").read_text())
    found: dict[str, Any] = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


def _template() -> dict[str, Any]:
    gateway: dict[str, Any] = _spec("agentservingclusters")["properties"]["gateway"]["properties"]["template"]
    return gateway


def _table(schema: dict[str, Any]) -> str:
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for path, kind, default, text in rows(schema):
        lines.append(f"| `{path.removeprefix('spec.')}` | {kind} | {default} | {text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
