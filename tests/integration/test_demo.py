"""`agentserving demo`: the same programs under FCFS and the default policy; figures, a table and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from agentserving_cli.demo import KINDS
from agentserving_cli.main import main
from click.testing import CliRunner

pytestmark = pytest.mark.timeout(180)


def test_the_demo_runs_the_same_programs_under_both_policies_and_counts_those_after_the_first(tmp_path: Path) -> None:
    arguments = ["--engine", "simulator", "--programs", "10", "--open", "5", "--rounds", "2", "--scale", "0.05"]
    ran = CliRunner().invoke(main, ["demo", *arguments, "--out", str(tmp_path)], env={"COLUMNS": "160"})
    assert ran.exit_code == 0, ran.output
    fcfs, auto = json.loads((tmp_path / "results.json").read_text())
    assert (fcfs["policy"], auto["policy"]) == ("fcfs", "auto")
    for summary in (fcfs, auto):
        assert summary["failed"] == 0
        assert [len(each["latencies_s"]) for each in summary["rounds"]] == [10, 10]
        assert len(summary["latencies_s"]) == len(summary["per_token_ms"]) == 20
        assert set(summary["shapes"]) == set(KINDS)
        assert summary["tokens_per_s"] > 0
        assert 0 < summary["prefix_hits"] < 1
    assert "share of life spent waiting" in ran.output
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
