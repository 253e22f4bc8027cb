"""A CPU worker may use AMX where there is any."""

from __future__ import annotations

from pathlib import Path

from agentserving_cli.local.layout import ClusterSpec, vllm_argv
from agentserving_engine import amx


def test_permission_is_given_only_where_the_cpu_has_amx_and_refused_without_an_error() -> None:
    has_amx = "amx_tile" in Path("/proc/cpuinfo").read_text().split()
    # A kernel before 5.16, or a filter of system calls, refuses it all the same.
    assert has_amx or not amx.request()


def test_workers_of_built_in_models_import_it() -> None:
    argv = vllm_argv(Path("python"), "model", 1, ClusterSpec(Path("home")))
    given = argv[argv.index("--worker-extension-cls") + 1]
    assert given == f"{amx.__name__}.{amx.AmxWorker.__name__}"
