"""Runs every case on the vLLM that comes first on PYTHONPATH, and prints one JSON line for each.

Usage: python -m engine.versions.child VERSION [PART OF A CASE'S NAME]

Each version has a process of its own: two versions of vLLM cannot be imported into one.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import signal
import sys
import time
import traceback
from types import FrameType
from typing import Any

import vllm
from engine.versions.catalogue import case_names, pipelines_of
from engine.versions.rig import PIPELINES, Options, make_config

# Finds hangs; on a busy machine the longest case takes a minute.
CASE_LIMIT_S = 300


def _too_long(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"not finished after {CASE_LIMIT_S} s")


def run_case(module: str, name: str, pipeline: str) -> dict[str, Any]:
    """The outcome of one case: its duration in seconds, and the traceback if it failed."""
    began = time.monotonic()
    signal.alarm(CASE_LIMIT_S)
    error = ""
    try:
        getattr(importlib.import_module(f"engine.versions.{module}"), name)(PIPELINES[pipeline])
    except BaseException:
        error = traceback.format_exc()
    finally:
        signal.alarm(0)
    return {"case": name, "pipeline": pipeline, "s": round(time.monotonic() - began, 2), "error": error}


def main() -> None:
    """Runs all cases, or those whose name contains the second argument."""
    faulthandler.enable()
    logging.disable(logging.ERROR)
    signal.signal(signal.SIGALRM, _too_long)
    version, wanted = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    assert vllm.__version__.split("+")[0] == version, f"PYTHONPATH has vLLM {vllm.__version__}, not {version}"
    # vLLM inspects the model's class in a process of its own, once. Without bytecode, on a busy machine, that takes
    # longer than a case may.
    make_config(Options(), asynchronous=False)
    for module, name in case_names():
        for pipeline in pipelines_of(name):
            if wanted in name:
                print(json.dumps(run_case(module, name, pipeline)), flush=True)


if __name__ == "__main__":
    main()
