"""Virtual time gives the same digits in every process: no set of hashed strings decides an order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from agentserving.contract.policy import PRESETS

Results = dict[str, dict[str, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def both() -> tuple[Results, Results]:
    """The small experiments in two processes that hash strings differently."""
    script = Path(__file__).with_name("small_experiments.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)], env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "2")
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    first, second = map(json.loads, outputs)
    return first, second


@pytest.mark.parametrize("policy", PRESETS)
def test_equal_digits_with_another_hash_seed(both: tuple[Results, Results], policy: str) -> None:
    first, second = both[0][policy], both[1][policy]
    assert [name for name in first if first[name] != second[name]] == []
    assert len(first) == 4


def test_calls_are_preempted_and_wait_in_these_experiments(both: tuple[Results, Results]) -> None:
    for policy in ("mlfq", "plas", "atlas", "program-plas", "program-atlas", "gittins", "auto"):
        results = [result for each in both[0][policy].values() for result in each]
        # `auto` has seen too few programs here to prefer any.
        assert policy == "auto" or sum(result["preemptions"] for result in results) > 50
        assert sum(result["wait_s"] for result in results) > 10
