"""Installs clients: packages of fixed versions, in the user's cache directory, once for each set of them."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from agentserving_cli.local.vllm_env import cache_dir, only_one, run_uv

HERE = Path(__file__).parent
BOUND_S = 900


class MissingError(RuntimeError):
    """A program without which a client cannot be installed; the message names it."""


def _once(name: str, sources: list[Path], install: Callable[[Path], None]) -> Path:
    """The directory into which `install` has put what `sources` describe."""
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in sources)).hexdigest()[:12]
    home = cache_dir() / f"clients-{name}-{digest}"
    with only_one(cache_dir() / f"clients-{name}.lock"):
        if not (home / ".complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            install(home)
            (home / ".complete").touch()
    return home


def _run(home: Path, *command: str, bound_s: float = BOUND_S) -> None:
    done = subprocess.run(command, cwd=home, timeout=bound_s, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def _needs(program: str) -> None:
    if shutil.which(program) is None:
        raise MissingError(f"{program} is not on PATH")


def npm(name: str) -> Path:
    """node_modules with the packages of packages/NAME/package.json."""
    _needs("npm")
    manifest = HERE / "packages" / name / "package.json"

    def install(home: Path) -> None:
        shutil.copy(manifest, home)
        _run(home, "npm", "install", "--silent", "--no-audit", "--no-fund", "--no-package-lock")

    return _once(f"npm-{name}", [manifest], install) / "node_modules"


def python(name: str) -> Path:
    """The directory of commands of an environment with requirements/NAME.txt."""
    requirements = HERE / "requirements" / f"{name}.txt"

    def install(home: Path) -> None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        run_uv("venv", "--quiet", "--allow-existing", "--python", version, str(home))
        run_uv("pip", "install", "--quiet", "--python", str(home / "bin" / "python"), "-r", str(requirements))

    return _once(f"python-{name}", [requirements], install) / "bin"


def go() -> Path:
    """The directory with `go_agent`, the agent of go/."""
    _needs("go")
    sources = [HERE / "go" / name for name in ("go.mod", "go.sum", "main.go")]

    def install(home: Path) -> None:
        _run(HERE / "go", "go", "build", "-o", str(home / "go_agent"), ".")

    return _once("go", sources, install)
