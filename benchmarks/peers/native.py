"""The two C programs of this benchmark: built on the first use, into the cache directory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.peers.processes import pin

HERE = Path(__file__).parent
LOAD_CORE, FRONT_CORE = 0, 1
LOAD_BOUND_S = 120.0


def built(name: str) -> Path:
    """The binary of `name`.c. RuntimeError when there is no compiler."""
    sources = [HERE / f"{name}.c", *sorted(HERE.glob("*.h"))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "agentserving" / "bench"
    binary = cache / f"{name}-{digest}"
    if binary.exists():
        return binary
    compiler = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")
    if compiler is None:
        raise RuntimeError("no C compiler: install gcc, or set CC")
    cache.mkdir(parents=True, exist_ok=True)
    scratch = cache / f"{name}.{os.getpid()}"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", scratch, sources[0], "-lm"], check=True)
    scratch.replace(binary)
    return binary


def load_argv(port: int, body: Path, header: str, *flags: object) -> list[str]:
    """Command line of the load generator; `flags` as load.c describes them."""
    fixed = ["-a", f"127.0.0.1:{port}", "-b", str(body), "-n", header]
    return [str(built("load")), *fixed, *map(str, flags)]


def drive(argv: list[str]) -> dict[str, Any]:
    """One load, on its core; its figures. RuntimeError when it fails, or when calls of it failed."""
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=LOAD_BOUND_S, preexec_fn=lambda: pin(LOAD_CORE)
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr[-500:]}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures
