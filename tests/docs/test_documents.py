"""Documents point at things that exist: links, decisions, tests, commands and generated pages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DECISIONS = ROOT / "docs" / "decisions"
MAX_LINE = 120


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_every_decision_is_listed_once_with_its_title() -> None:
    listed = re.findall(
        r"^- \[(\d{4})\]\((.+?\.md)\) (.+?)(?: \(superseded\))?$", (DECISIONS / "README.md").read_text(), re.M
    )
    files = sorted(path.name for path in DECISIONS.glob("[0-9]*.md"))
    assert sorted(name for _, name, _ in listed) == files
    for number, name, title in listed:
        assert (DECISIONS / name).read_text().startswith(f"# {number}. {title}\n")


@pytest.mark.parametrize("path", sorted(DECISIONS.glob("[0-9]*.md")), ids=lambda path: path.name[:4])
def test_a_decision_has_context_decision_and_consequence(path: Path) -> None:
    labels = re.findall(r"^\*\*(\w+)\.\*\* ", path.read_text(), re.M)
    assert labels == ["Context", "Decision", "Consequence"]


def test_source_files_that_documents_name_exist() -> None:
    roots = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    files = ["/" + str(path.relative_to(ROOT)) for root in roots for path in root.rglob("*.py")]
    named = {
        (page_id(page), name)
        for page in PAGES
        if "results" not in page.parts and page.name != "CHANGELOG.md"
        for name in re.findall(r"`([\w./-]+\.py)`", page.read_text())
    }
    assert [pair for pair in sorted(named) if not any(path.endswith("/" + pair[1]) for path in files)] == []


def test_each_test_in_the_table_of_bugs_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "bugs.md").read_text())
    assert named
    missing = [f"{path}::{name}" for path, name in named if name not in functions(ROOT / path)]
    assert missing == []


def test_each_control_has_a_state_and_names_tests_that_exist() -> None:
    rows = re.findall(
        r"^\| (\d+) \| [^|]+ \| ([^|]+) \| [^|]* \| ([^|]*)\|$", (ROOT / "docs/security.md").read_text(), re.M
    )
    assert [int(number) for number, _, _ in rows] == list(range(1, 25))
    assert {state for _, state, _ in rows} <= {"met", "partly", "not met"}
    named = {number: re.findall(r"`([^`]+)`", tests) for number, _, tests in rows}
    assert [path for tests in named.values() for path in tests if not (ROOT / path).exists()] == []
    assert [number for number, state, _ in rows if state == "met" and not named[number]] == []


def test_each_expectation_has_a_state_and_names_tests_that_exist() -> None:
    section = (ROOT / "docs/support.md").read_text().partition("## What platform teams expect")[2]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]*\| ([^|]*)\|$", section, re.M)[2:]
    assert len(rows) > 20
    assert {state for _, state, _ in rows} <= {"met", "partly", "not met"}
    for habit, state, tests in rows:
        named = re.findall(r"`([^`:]+)(?:::(\w+))?`", tests)
        assert bool(named) is (state != "not met"), habit
        for path, name in named:
            assert (ROOT / path).exists(), path
            assert not name or name in functions(ROOT / path), name


def functions(path: Path) -> set[str]:
    """Names of the functions defined anywhere in a file; empty when there is no such file."""
    if not path.exists():
        return set()
    tree = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in tree if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_prose_keeps_to_the_line_length() -> None:
    """Tables may be longer; so may the generated pages and measured results."""
    too_long = [
        f"{page_id(page)}:{number}"
        for page in PAGES
        if "results" not in page.parts
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if len(line) > MAX_LINE and not line.startswith("|")
    ]
    assert too_long == []


def test_the_reference_of_the_crd_is_generated_from_it() -> None:
    printed = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "crd_reference.py")], capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs" / "crd.md").read_text() == printed.stdout, "run: make crd"


def test_make_help_lists_every_public_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.M)
    assert phony is not None
    explained = re.findall(r"^([a-z0-9-]+):.*## ", makefile, re.M)
    assert sorted(explained) == sorted(phony[1].split())


def test_the_make_targets_that_documents_name_exist() -> None:
    explained = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    named = {
        word
        for page in PAGES
        for word in re.findall(r"`make ([a-z][a-z0-9-]*)|^    make ([a-z][a-z0-9-]*)", page.read_text(), re.M)
        for word in word
        if word
    }
    assert named <= explained
