"""The paper's experiments run on a small scale, and results become tables and pictures."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.paper import report
from benchmarks.paper.contenders import CONTENDERS
from benchmarks.paper.experiments import EXPERIMENTS, PAPER
from benchmarks.paper.runs import Run, execute, execute_all

SMALL = Run(workload="sharegpt", contender="plas", rate_per_s=2.0, seed=0, programs=12)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_names_what_there_is(name: str) -> None:
    quick, whole = (list(EXPERIMENTS[name](quick)) for quick in (True, False))
    assert 0 < len(quick) < len(whole)
    assert len(set(whole)) == len(whole), "no run is made twice"
    for run in whole:
        assert run.contender in CONTENDERS
        assert run.spec().policy.decision_interval_steps in (1, 8)


def test_runs_on_two_processes_are_the_runs_on_one() -> None:
    runs = [replace(SMALL, contender=name) for name in ("vllm", "program-plas")]
    assert dict(execute_all(runs, 2)) == {run: execute(run) for run in runs}


def test_a_clairvoyant_order_is_told_what_programs_need() -> None:
    crowded = Run(workload="sharegpt", contender="srpt", rate_per_s=20.0, seed=0, programs=200, max_num_seqs=8)
    best, fcfs = execute(crowded), execute(replace(crowded, contender="vllm-opt"))
    assert best.token_ms < 0.7 * fcfs.token_ms


def test_results_become_tables_and_pictures(tmp_path: Path) -> None:
    rows = [
        {"run": asdict(run), "figures": execute(run).as_dict()}
        for contender in PAPER
        for seed in (0, 1)
        for run in [replace(SMALL, contender=contender, seed=seed)]
    ]
    (tmp_path / "latency-sharegpt.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / "makespan.json").write_text(json.dumps({"rows": rows}))
    report.write(tmp_path)
    tables = (tmp_path / "tables.md").read_text()
    assert all(f"| 2 | {name} |" in tables for name in PAPER)
    assert "## All programs at once (Fig. 16)" in tables
    assert "| 2 | lower bound |" in tables
    assert (tmp_path / "latency.png").stat().st_size > 10_000
    assert "<svg" in (tmp_path / "latency.svg").read_text()
