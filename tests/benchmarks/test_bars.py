"""A bar is judged by the bad end of its interval, and the summary says where each figure comes from."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks import records
from benchmarks.bars import Bar, Verdict, bar
from benchmarks.run import ALL, judges, table


def verdict(values: list[float], goal: str, **more: Any) -> Verdict:
    return bar("b", values, goal, "ms", "nothing", **more).verdict


@pytest.mark.parametrize(
    ("values", "goal", "expected"),
    [
        ([1.0, 1.1, 0.9], "<= 2", Verdict.MET),
        ([3.0, 3.1, 2.9], "<= 2", Verdict.MISSED),
        ([1.0, 2.8, 1.2], "<= 2", Verdict.NOT_SHOWN),
        ([2.6, 2.5, 2.7], ">= 2", Verdict.MET),
        ([1.0, 1.1, 0.9], ">= 2", Verdict.MISSED),
        ([2.0, 3.5, 2.5], ">= 2", Verdict.NOT_SHOWN),
    ],
)
def test_a_bar_is_met_or_missed_only_by_its_whole_interval(values: list[float], goal: str, expected: Verdict) -> None:
    assert verdict(values, goal) is expected


def test_one_run_shows_nothing_however_good_it_was() -> None:
    one = bar("b", [0.001], "<= 100", "ms", "nothing")
    assert one.verdict is Verdict.NOT_SHOWN
    assert (one.as_dict()["low"], one.as_dict()["high"]) == (None, None)


def test_an_interval_that_ends_at_the_goal_meets_it() -> None:
    assert verdict([2.0, 2.0, 2.0], "<= 2") is Verdict.MET
    assert verdict([2.0, 2.0, 2.0], ">= 2") is Verdict.MET


def test_failed_programs_make_a_bar_missed_whatever_the_others_did() -> None:
    assert verdict([1.0, 1.1, 0.9], "<= 2", failed=1) is Verdict.MISSED


def judge(raw: Any) -> list[Bar]:
    return [bar("b", raw, "<= 2", "ms", "nothing", in_sample=True)]


def measured(commit: str, date: str) -> records.Measured:
    return records.Measured(commit=commit, date=date, machine="2 x abacus", machine_noise=0.1)


def test_the_summary_carries_commit_date_and_machine_of_every_bar(tmp_path: Path) -> None:
    records.write("one", [1.0, 1.1], measured("aaaaaaa", "2026-01-01T00:00:00Z"), tmp_path)
    document = records.summary({"one": judge, "never measured": judge}, tmp_path)
    assert document["note"] == "all measured at aaaaaaa"
    (entry,) = document["bars"]
    assert (entry["commit"], entry["date"], entry["machine"]) == ("aaaaaaa", "2026-01-01T00:00:00Z", "2 x abacus")
    assert entry["in_sample"] is True


def test_a_summary_of_several_commits_says_so(tmp_path: Path) -> None:
    records.write("new", [1.0, 1.1], measured("bbbbbbb", "2026-02-01T00:00:00Z"), tmp_path)
    records.write("old", [1.0, 1.1], measured("aaaaaaa", "2026-01-01T00:00:00Z"), tmp_path)
    document = records.summary({"new": judge, "old": judge}, tmp_path)
    assert document["note"].startswith("measured at 2 commits, from aaaaaaa (2026-01-01) to bbbbbbb (2026-02-01)")
    assert document["note"] in str(table(document).title)


def test_measuring_again_replaces_a_figure_with_its_origin(tmp_path: Path) -> None:
    for commit, values in (("aaaaaaa", [1.0, 1.0]), ("bbbbbbb", [3.0, 3.0])):
        records.write("one", values, measured(commit, "2026-01-01T00:00:00Z"), tmp_path)
    document = records.write_summary({"one": judge}, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == document
    assert [(entry["commit"], entry["verdict"]) for entry in document["bars"]] == [("bbbbbbb", "missed")]


def git(directory: Path, *arguments: str) -> str:
    author = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    command = ("git", "-C", str(directory), *author, *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_commit_is_marked_when_the_measured_code_differs_from_it(tmp_path: Path) -> None:
    assert records.commit_of(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    code, result = tmp_path / "code.py", tmp_path / "benchmarks" / "results" / "one.json"
    result.parent.mkdir(parents=True)
    code.write_text("1")
    result.write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "One")
    head = git(tmp_path, "rev-parse", "--short", "HEAD")
    result.write_text("2")
    assert records.commit_of(tmp_path) == head, "results are written by runs, they do not change what is measured"
    code.write_text("2")
    assert records.commit_of(tmp_path) == f"{head}-dirty"


def test_the_record_of_a_run_names_time_and_machine() -> None:
    now = records.measured_now()
    assert datetime.fromisoformat(now.date).tzinfo is not None
    assert " x " in now.machine
    assert now.source == "run"


def test_the_committed_summary_is_what_the_committed_figures_say() -> None:
    assert json.loads((records.RESULTS / "summary.json").read_text()) == records.summary(judges())


@pytest.mark.parametrize("name", ALL)
def test_every_committed_figure_says_where_it_was_measured(name: str) -> None:
    document = json.loads((records.RESULTS / f"{name}.json").read_text())
    assert records.Measured(**document["measured"]).source in ("run", "history")
