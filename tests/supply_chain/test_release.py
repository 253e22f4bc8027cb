"""A dry run of `make release`: what is published is complete, verifiable and signed."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "agentserving"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("key") / "key.pem"
    argv = ["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", str(made)]
    subprocess.run(argv, check=True, capture_output=True)
    return made


def digest(name: str) -> str:
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


NAMES = ("image", "engineImage", "etcdImage", "PYTHON_IMAGE", "VLLM_IMAGE")
LINES = [f"{name} registry.test:5000/{name.lower()}@{digest(name)}" for name in NAMES]


def make(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "scripts/release.py", "--out", str(out), "--no-sbom", *more]
    return subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    place = tmp_path_factory.mktemp("release")
    (place / "images.txt").write_text("\n".join(LINES) + "\n")
    done = make(place / "out", "--key", str(key), "--images", str(place / "images.txt"))
    assert done.returncode == 0, done.stderr
    return place / "out"


def values_of(release: Path) -> dict[str, Any]:
    (archive,) = release.glob("agentserving-*.tgz")
    with tarfile.open(archive) as tar:
        member = tar.extractfile("agentserving/values.yaml")
        assert member is not None
        found: dict[str, Any] = yaml.safe_load(member)
    return found


def test_the_chart_of_a_release_installs_its_images_by_digest_and_accepts_no_others(release: Path) -> None:
    ours, expected = values_of(release), yaml.safe_load((CHART / "values.yaml").read_text())
    for name in NAMES[:3]:
        expected[name] |= {"repository": f"registry.test:5000/{name.lower()}", "digest": digest(name)}
    assert ours == expected | {"requireDigests": True}
    targets = json.loads((release / "images.json").read_text())["target"]
    bases = {name: f"registry.test:5000/{name.lower()}@{digest(name)}" for name in NAMES[3:]}
    assert [each["args"] for each in targets.values()] == [bases, bases]


def test_nothing_is_signed_without_digests(tmp_path: Path, key: Path) -> None:
    refused = make(tmp_path / "out", "--key", str(key))
    assert (refused.returncode, (tmp_path / "out").exists()) == (2, False)
    assert "--images" in refused.stderr


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (LINES[1:], "image"),
        ([*LINES, "sidecarImage a@" + digest("a")], "sidecarImage"),
        ([*LINES[:4], "VLLM_IMAGE docker.io/vllm/vllm-openai:v0.32.0"], "VLLM_IMAGE"),
        ([*LINES[:4], LINES[4][:-1]], "VLLM_IMAGE"),
    ],
)
def test_images_that_are_not_all_named_by_digest_are_refused(tmp_path: Path, lines: list[str], named: str) -> None:
    (tmp_path / "images.txt").write_text("\n".join(lines))
    refused = make(tmp_path / "out", "--images", str(tmp_path / "images.txt"))
    assert (refused.returncode, (tmp_path / "out").exists()) == (2, False)
    assert named in refused.stderr


def test_every_file_has_a_checksum_that_holds(release: Path) -> None:
    lines = (release / "SHA256SUMS").read_text().splitlines()
    listed = {line.partition("  ")[2] for line in lines}
    there = {str(each.relative_to(release)) for each in release.rglob("*") if each.is_file()}
    assert listed == there - {"SHA256SUMS", "SHA256SUMS.sig"}
    assert any(name.endswith(".whl") for name in listed)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=release, check=True)


@pytest.mark.parametrize("changed", [False, True])
def test_openssl_verifies_the_signature_and_notices_a_change(
    release: Path, key: Path, tmp_path: Path, changed: bool
) -> None:
    public, raw, data = tmp_path / "public.pem", tmp_path / "raw.sig", tmp_path / "SHA256SUMS"
    subprocess.run(["openssl", "ec", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    raw.write_bytes(base64.b64decode((release / "SHA256SUMS.sig").read_text()))
    data.write_bytes((release / "SHA256SUMS").read_bytes() + (b"x" if changed else b""))
    argv = ["openssl", "dgst", "-sha256", "-verify", public, "-signature", raw, data]
    assert (subprocess.run(argv, check=False, capture_output=True).returncode != 0) is changed


def test_the_chart_is_whole_and_its_oci_layout_holds_it(release: Path) -> None:
    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
    (archive,) = release.glob("agentserving-*.tgz")
    with tarfile.open(archive) as tar:
        assert set(tar.getnames()) == {f"agentserving/{p.relative_to(CHART)}" for p in CHART.rglob("*") if p.is_file()}
    layout = release / "chart-oci"
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]

    def blob(digest: str) -> bytes:
        data = (layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest
        return data

    manifest = json.loads(blob(entry["digest"]))
    assert json.loads(blob(manifest["config"]["digest"]))["version"] == metadata["version"]
    (layer,) = manifest["layers"]
    assert blob(layer["digest"]) == archive.read_bytes()


@pytest.mark.skipif(shutil.which("helm") is None, reason="no helm on PATH; make e2e brings one")
def test_helm_reads_the_packaged_chart(release: Path) -> None:
    (archive,) = release.glob("agentserving-*.tgz")
    subprocess.run(["helm", "template", "x", archive, "--kube-version", "1.35.0"], check=True, capture_output=True)


def test_images_are_defined_for_both_architectures_with_files_that_exist(release: Path) -> None:
    targets = json.loads((release / "images.json").read_text())["target"]
    assert set(targets) == {"agentserving", "engine"}
    for each in targets.values():
        assert each["platforms"] == ["linux/amd64", "linux/arm64"]
        assert (ROOT / each["dockerfile"]).is_file()
