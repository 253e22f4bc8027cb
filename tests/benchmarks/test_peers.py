"""The measurement beside other fronts: its figures, its two C programs, the configurations of peers."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from agentserving_gateway.front import find_envoy

from benchmarks.bars import Verdict
from benchmarks.peers import loads, native, peer_configs, processes, running
from benchmarks.peers.fronts import Front, peers
from benchmarks.peers.loads import DIRECT, OURS, Load


def entry(p50: float, cpu_ms: float = 0.0, **more: float) -> dict[str, float]:
    return {"p50": p50, "p99": 2 * p50, "max": 3 * p50, "cpu_ms": cpu_ms, "errors": 0, "not_sent": 0, **more}


def test_what_a_front_adds_is_judged_round_by_round() -> None:
    rounds = {
        DIRECT: {"400/s": [entry(0.1), entry(5.0), entry(0.2)]},
        OURS: {"400/s": [entry(0.6, 1.05), entry(5.5, 1.06), entry(0.7, 1.05)]},
    }
    assert loads.added(rounds, OURS, "400/s", "p50") == pytest.approx([0.5, 0.5, 0.5])
    verdicts = {(bar.name, bar.goal): bar.verdict for bar in loads.bars(rounds)}
    assert verdicts["added-p50", "<= 1.0"] is Verdict.MET
    assert verdicts["cpu-per-call", "<= 1.2"] is Verdict.MET
    assert verdicts["cpu-per-call-llm-d", "<= 0.99"] is Verdict.MISSED


def test_a_bar_with_failed_calls_is_missed() -> None:
    rounds = {
        DIRECT: {"400/s": [entry(0.1), entry(0.1)]},
        OURS: {"400/s": [entry(0.2, 1.0), {**entry(0.2, 1.0), "errors": 1}]},
    }
    assert {bar.verdict for bar in loads.bars(rounds)} == {Verdict.MISSED}


def test_the_ratio_of_two_checkouts_is_one_when_they_cost_the_same() -> None:
    rounds: Any = {name: {"x": [entry(1.0, 2.0), entry(1.0, 3.0)]} for name in (OURS, "other")}
    assert loads.ratio(rounds, OURS, "other", "x", "cpu_ms") == pytest.approx((1.0, 1.0, 1.0))


def test_envoy_takes_the_configurations_of_peers(tmp_path: Path) -> None:
    for config in (peer_configs.envoy(1, [2, 3]), peer_configs.envoy_with_epp(1, 2)):
        file = tmp_path / "envoy.json"
        file.write_text(json.dumps(config))
        argv = [find_envoy(), "--mode", "validate", "--config-path", str(file)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def test_a_peer_that_is_not_installed_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NGINX_BIN", "HAPROXY_BIN", "EPP_BIN", "LITELLM_BIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    missing = {front.name: front.unavailable for front in peers(1, [2])}
    assert not missing.pop("envoy")
    assert all("install" in why or "build" in why for why in missing.values())


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
@pytest.mark.parametrize("stream", [False, True])
def test_the_engines_answer_every_call_of_the_load(
    stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without real-time priority, so that other tests do not wait.
    monkeypatch.setattr(processes, "pin", lambda core: None)
    monkeypatch.setattr(native, "pin", lambda core: None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    front = Front(name=DIRECT, port=port, parts=lambda home: [])
    load = Load(name="x", callers=4, tokens=3, stream=stream, seconds=0.5)
    with (
        running.engines(port, 1, tmp_path / "channel", tmp_path / "log"),
        running.started(front, tmp_path) as (nothing, _),
    ):
        found = running.loaded(front, load, 0, nothing, tmp_path)
    assert found["calls"] > 0
    assert (found["errors"], found["not_sent"], found["unfinished"]) == (0, 0, 0)
    # Three chunks, one a step.
    assert not stream or found["p50"] >= 2 * loads.STEP_US / 1000
