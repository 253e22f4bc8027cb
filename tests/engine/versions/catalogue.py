"""The list of cases, read from their source: the test process has no vLLM, so it cannot import them."""

from __future__ import annotations

import ast
from pathlib import Path

PIPELINES = ("sync-runner1", "sync-runner2", "async-runner1", "async-runner2")


def case_names() -> list[tuple[str, str]]:
    """(module, function) of each `case_*` in the `cases_*` modules of this folder."""
    return [
        (path.stem, node.name)
        for path in sorted(Path(__file__).parent.glob("cases_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("case_")
    ]


def pipelines_of(case: str) -> tuple[str, ...]:
    """A case about one pipeline only says so at the end of its name."""
    if case.endswith("_async"):
        return tuple(name for name in PIPELINES if name.startswith("async"))
    return PIPELINES
