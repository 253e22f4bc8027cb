"""The chart's README from values.yaml: its keys, their defaults, and the comments above them. Prints it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

CHART = Path(__file__).parents[1] / "charts" / "agentserving"
HEAD = """# agentserving chart

The operator of AgentServingClusters, with its rights and the CustomResourceDefinition. Install it, then apply an
AgentServingCluster (the notes show one):

    helm install agentserving charts/agentserving -n agentserving --create-namespace --wait

Made from values.yaml; `make crd` writes it again.

| value | default | |
|---|---|---|
"""


def rows(text: str) -> Iterator[tuple[str, str, str]]:
    """(path, default as JSON, words) of each leaf, in the order of the file. A block's comment is its first leaf's."""
    values = yaml.safe_load(text)
    path: list[str] = []
    words: list[str] = []
    for line in text.splitlines():
        found = re.match(r"( *)(#|[A-Za-z]+:)", line)
        if found is None:
            continue
        if found[2] == "#":
            words.append(line.strip().removeprefix("# "))
            continue
        path = [*path[: len(found[1]) // 2], found[2].rstrip(":")]
        value = values
        for key in path:
            value = value[key]
        if isinstance(value, dict) and value and line.rstrip().endswith(":"):
            continue
        yield ".".join(path), json.dumps(value), " ".join(words)
        words = []


def table() -> str:
    """The whole README."""
    return HEAD + "".join(
        f"| `{path}` | `{default}` | {words} |\n" for path, default, words in rows((CHART / "values.yaml").read_text())
    )


if __name__ == "__main__":
    print(table(), end="")
