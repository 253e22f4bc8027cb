"""Everything that a release publishes, in one folder: `make release KEY=cosign.pem OUT=dist/release`.

wheel, chart (as a file and as an OCI image layout), definitions of the images for amd64 and arm64, SBOM, SHA256SUMS and
its signature. Nothing is uploaded. `--images FILE` names the images that were pushed and what they stand on, by digest:

    image docker.io/agentserving/agentserving@sha256:...
    engineImage docker.io/agentserving/engine@sha256:...
    etcdImage quay.io/coreos/etcd@sha256:...
    PYTHON_IMAGE docker.io/library/python@sha256:...
    VLLM_IMAGE docker.io/vllm/vllm-openai@sha256:...

The chart then installs these and refuses any other without a digest. Nothing is signed without it. The signature is
ECDSA over SHA-256 in base64, which `cosign verify-blob --key` and `openssl dgst -sha256 -verify` check. Two runs on one
commit give the same chart.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "agentserving"
PLATFORMS = ["linux/amd64", "linux/arm64"]
CONFIG = "application/vnd.cncf.helm.config.v1+json"
LAYER = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CHART_IMAGES, BASE_IMAGES = ("image", "engineImage", "etcdImage"), ("PYTHON_IMAGE", "VLLM_IMAGE")
BY_DIGEST = re.compile(r"([a-z0-9][a-z0-9./:_-]*)@(sha256:[0-9a-f]{64})")
IMAGES = {"agentserving": "Containerfile", "engine": "engine-image/Containerfile"}


def pinned(text: str) -> dict[str, tuple[str, str]]:
    """(repository, digest) by name. ValueError for an image too many or too few, and for one without a digest."""
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, image = line.partition(" ")
        if (parts := BY_DIGEST.fullmatch(image.strip())) is None:
            raise ValueError(f"{name}: must be repository@sha256:<64 hexadecimal digits>, not {image.strip()!r}")
        found[name] = (parts[1], parts[2])
    if odd := found.keys() ^ {*CHART_IMAGES, *BASE_IMAGES}:
        raise ValueError(
            f"each of {', '.join((*CHART_IMAGES, *BASE_IMAGES))} is needed once; see {', '.join(sorted(odd))}"
        )
    return found


def values_with(images: dict[str, tuple[str, str]], values: str) -> str:
    """The chart's values.yaml, comments included, with these images and nothing but digests accepted."""
    for name in CHART_IMAGES:
        repository, digest = images[name]
        block = rf"(^{name}:\n(?:[ ]+.*\n)*?  repository: ).*(\n(?:[ ]+.*\n)*?  digest: ).*"
        values, count = re.subn(block, rf'\g<1>{repository}\g<2>"{digest}"', values, count=1, flags=re.MULTILINE)
        if not count:
            raise ValueError(f"values.yaml has no {name} with repository and digest")
    return values.replace("\nrequireDigests: false\n", "\nrequireDigests: true\n")


def chart_archive(images: dict[str, tuple[str, str]] | None = None) -> bytes:
    """The chart as `helm package` lays it out, without times and owners; with these images, if any are given."""
    found = io.BytesIO()
    with gzip.GzipFile(fileobj=found, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for path in sorted(each for each in CHART.rglob("*") if each.is_file()):
            info = tarfile.TarInfo(f"{CHART.name}/{path.relative_to(CHART)}")
            data = path.read_bytes()
            if images is not None and path == CHART / "values.yaml":
                data = values_with(images, data.decode()).encode()
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return found.getvalue()


def write_oci_layout(directory: Path, metadata: dict[str, Any], archive: bytes) -> None:
    """The chart as an OCI image layout, which `oras cp --from-oci-layout` and others copy to a registry."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    config = blob(CONFIG, json.dumps(metadata, sort_keys=True).encode())
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [blob(LAYER, archive)]}
    entry = blob(MANIFEST, json.dumps(manifest, sort_keys=True).encode())
    entry["annotations"] = {"org.opencontainers.image.ref.name": str(metadata["version"])}
    (directory / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def image_definitions(version: str, images: dict[str, tuple[str, str]] | None = None) -> dict[str, Any]:
    """For `docker buildx bake -f images.json`, run at the root of the repository."""
    bases = {name: "@".join(images[name]) for name in BASE_IMAGES} if images is not None else {}
    targets = {
        name: {
            "context": ".", "dockerfile": file, "platforms": PLATFORMS, "tags": [f"agentserving/{name}:{version}"],
            "attest": ["type=provenance,mode=max", "type=sbom"], "args": bases,
        }
        for name, file in IMAGES.items()
    }  # fmt: skip
    return {"group": {"default": {"targets": list(targets)}}, "target": targets}


def checksums(directory: Path) -> str:
    """SHA256SUMS of all files below a directory, as `sha256sum -c` reads it."""
    files = sorted(each for each in directory.rglob("*") if each.is_file() and not each.name.startswith("SHA256SUMS"))
    return "".join(
        f"{hashlib.sha256(each.read_bytes()).hexdigest()}  {each.relative_to(directory)}\n" for each in files
    )


def signature(key_file: Path, data: bytes) -> str:
    """Base64 of the signature. ValueError when the file holds no ECDSA key without a password."""
    key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{key_file}: must hold an ECDSA key: openssl ecparam -genkey -name prime256v1 -noout")
    return base64.b64encode(key.sign(data, ec.ECDSA(hashes.SHA256()))).decode() + "\n"


def main(argv: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "release")
    parser.add_argument("--key", type=Path, help="PEM file of an ECDSA key; without it nothing is signed")
    parser.add_argument("--no-sbom", action="store_true", help="leave out the SBOM, which downloads all packages")
    parser.add_argument("--images", type=Path, help="file of the images by digest")
    given = parser.parse_args(argv)
    if given.key is not None and given.images is None:
        parser.error("--key: a release is signed only with --images, which names its images by digest")
    images = None
    if given.images is not None:
        try:
            images = pinned(given.images.read_text())
        except (OSError, ValueError) as error:
            parser.error(f"--images: {error}")
    out: Path = given.out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = metadata["version"]
    python = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(python, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    archive = chart_archive(images)
    (out / f"{CHART.name}-{version}.tgz").write_bytes(archive)
    write_oci_layout(out / "chart-oci", metadata, archive)
    (out / "images.json").write_text(json.dumps(image_definitions(version, images), indent=2) + "\n")
    if not given.no_sbom:
        subprocess.run([str(ROOT / "scripts" / "sbom.sh"), str(out / "sbom.json")], check=True)
    sums = checksums(out)
    (out / "SHA256SUMS").write_text(sums)
    if given.key is not None:
        (out / "SHA256SUMS.sig").write_text(signature(given.key, sums.encode()))
    print(sums, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
