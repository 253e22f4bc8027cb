"""No background task of the sidecar can fail unnoticed: the process says so, and ends or recovers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Runs the sidecar with one function replaced: it fails after its first second.
FAILING = """
import asyncio, sys
from agentserving_sidecar import __main__ as main
from agentserving_sidecar.{module} import {name} as target

async def fail(*arguments, **options):
    await asyncio.sleep(0.5)
    raise RuntimeError("injected failure")

{replace}
main.main()
"""


def start(tmp_path: Path, code: str) -> subprocess.Popen[str]:
    (tmp_path / "channel").mkdir()
    return subprocess.Popen(
        [
            sys.executable, "-c", code, "--engine-id", "e1", "--engine-address", "127.0.0.1:9", "--channel-dir",
            str(tmp_path / "channel"), "--state-dir", str(tmp_path / "state"), "--control-plane", "127.0.0.1:9",
            "--listen", "127.0.0.1:0", "--drain-s", "0.1",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def code_for(module: str, name: str, replace: str) -> str:
    return FAILING.format(module=module, name=name, replace=replace)


@pytest.mark.parametrize(
    ("task", "module", "name", "replace"),
    [
        ("engine channel", "engine_link", "EngineLinks", "target.run = fail"),
        ("attach", "api.attach", "LeaderLink", "target.run = fail"),
        ("journal", "recording", "Recorder", "target.run = fail"),
        ("health", "sidecar", "Sidecar", "target.watch_health = fail"),
        ("front probe", "probing", "probe_front", "main.probe_front = fail"),
    ],
)
def test_a_task_that_fails_ends_the_process_with_a_reason(
    tmp_path: Path, task: str, module: str, name: str, replace: str
) -> None:
    process = start(tmp_path, code_for(module, name, replace))
    _, text = process.communicate(timeout=60)
    assert process.returncode == 70, text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    failed = [line for line in lines if line.get("task") == task and "injected failure" in str(line.get("reason"))]
    assert failed, text


def test_asking_for_models_is_restarted_and_the_process_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, code_for("probing", "ModelList", "target.run = fail"))
    assert process.stderr is not None
    restarts, deadline, seen = 0, time.monotonic() + 60, []
    while restarts < 2 and time.monotonic() < deadline:
        seen.append(process.stderr.readline())
        restarts += "restarting it" in seen[-1]
    assert restarts == 2, seen
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
