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


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    out = tmp_path_factory.mktemp("release") / "out"
    argv = [sys.executable, "scripts/release.py", "--out", str(out), "--key", str(key), "--no-sbom"]
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True)
    return out


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
