"""The probes' side of `benchmarks.against`: one line on stdin asks for a round, one line of JSON on stdout answers.

A probe runs with the Python of either checkout, so apart from this package it imports only what both have. Module paths
that differ between them are looked up with `attribute`. Every figure is a cost: lower is better.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attribute(name: str, *modules: str) -> Any:
    """`name` from the first of these modules that exists. ModuleNotFoundError when none does."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(f"{name}: none of {', '.join(modules)} exists")


def answer_rounds(measure: Callable[[], Mapping[str, float]]) -> None:
    """Reports that the probe is ready, then measures once per line of stdin until it is closed."""
    print(json.dumps({}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)
