"""The plugin on the real scheduler of each supported vLLM, with steps in flight, without a GPU.

Each version runs in its own process (see versions/child.py); a failure names version, pipeline and case.
AGENTSERVING_VLLM_VERSIONS selects the versions: "all", or a list separated by commas; by default the oldest, the one
that the integration tests use, and the newest.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path

import pytest
from agentserving_cli.local.vllm_env import VLLM_VERSION, ensure_model, ensure_vllm
from engine.versions.catalogue import case_names, pipelines_of
from engine.vllm_sources import VERSIONS, bytecode_dir, ensure_sources

ROOT = Path(__file__).parents[2]
# For fetching a version, importing it without bytecode and running every case, on a slow and busy machine.
VERSION_LIMIT_S = 1800

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(VERSION_LIMIT_S + 60)]


def chosen_versions() -> tuple[str, ...]:
    wanted = os.environ.get("AGENTSERVING_VLLM_VERSIONS", "")
    if wanted == "all":
        return VERSIONS
    return tuple(wanted.split(",")) if wanted else (VERSIONS[0], VLLM_VERSION, VERSIONS[-1])


@functools.cache
def outcomes(version: str) -> dict[tuple[str, str], str]:
    """(case, pipeline) -> traceback or "", for every case that ended."""
    python = ensure_vllm()
    roots = (ensure_sources(version), ROOT / "tests", ROOT / "proto", ROOT / "engine-image")
    env = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "PYTHONPATH": os.pathsep.join(map(str, roots)),
        "PYTHONPYCACHEPREFIX": str(bytecode_dir()),
        "AGENTSERVING_TEST_MODEL": str(ensure_model(python)),
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
    }
    command = [str(python), "-m", "engine.versions.child", version]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=VERSION_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += f"\nended after {VERSION_LIMIT_S} s"
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    ended = {(line["case"], line["pipeline"]): line["error"] for line in lines}
    ended["process", "all"] = err[-4000:]
    return ended


@pytest.mark.parametrize("version", chosen_versions())
@pytest.mark.parametrize(
    ("case", "pipeline"), [(case, pipeline) for _, case in case_names() for pipeline in pipelines_of(case)]
)
def test_the_plugin_is_right_on(version: str, case: str, pipeline: str) -> None:
    ended = outcomes(version)
    if (case, pipeline) not in ended:
        pytest.fail(f"vLLM {version} ended before {case}:\n{ended.get(('process', 'all'), '')}", pytrace=False)
    if error := ended[case, pipeline]:
        pytest.fail(f"vLLM {version}, {pipeline}, {case}:\n{error}", pytrace=False)
