"""One front at a time: started, loaded, stopped."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers import loads, native, processes
from benchmarks.peers.fronts import Front
from benchmarks.peers.loads import Load

START_S = 60.0
PROGRAMS = 1_000
WARM_UP_S = 1.0
SETTLE_S = 0.3


@contextmanager
def engines(port: int, count: int, channel: Path, log: Path) -> Iterator[None]:
    """upstream.c on the load's core."""
    channel.mkdir(parents=True, exist_ok=True)
    argv = [str(native.built("upstream")), str(port), str(count), str(loads.STEP_US), str(channel)]
    process = processes.launch(argv, core=native.LOAD_CORE, log=log, env={})
    try:
        yield
    finally:
        processes.stop([process])


@contextmanager
def started(front: Front, home: Path) -> Iterator[tuple[dict[str, subprocess.Popen[bytes]], float]]:
    """The processes of a front by name, and the seconds until the first answer. RuntimeError when there is none."""
    home.mkdir(parents=True, exist_ok=True)
    parts = front.parts(home)
    began = time.monotonic()
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for part in parts:
            log = home / f"{part.name}.log"
            running[part.name] = processes.launch(part.argv, core=native.FRONT_CORE, log=log, env=part.env)
        while not _answers(front.port):
            dead = [name for name, process in running.items() if process.poll() is not None]
            if dead or time.monotonic() > began + START_S:
                raise RuntimeError(f"{front.name} does not start: {_last_lines(home, dead or list(running))}")
            time.sleep(0.01)
        yield running, time.monotonic() - began
    finally:
        processes.stop(running.values())


def _last_lines(home: Path, names: Sequence[str]) -> str:
    return "; ".join(f"{name}: {(home / f'{name}.log').read_text()[-300:].strip()}" for name in names)


def _answers(port: int) -> bool:
    headers = {"content-type": "application/json", "authorization": "Bearer sk-1234"}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, loads.body(10), headers), timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def loaded(
    front: Front, load: Load, seed: int, running: dict[str, subprocess.Popen[bytes]], bodies: Path
) -> dict[str, Any]:
    """The figures of one load."""
    file = bodies / f"{load.prompt_bytes}-{load.tokens}-{load.stream}.json"
    file.write_bytes(loads.body(load.prompt_bytes, load.tokens, stream=load.stream))
    fixed = ("-s", seed, "-p", PROGRAMS)
    argv = native.load_argv(front.port, file, front.header, *load.flags, "-d", load.seconds, "-w", WARM_UP_S, *fixed)
    before = {name: processes.cpu_ms(process.pid) for name, process in running.items()}
    with _beside(front, load, bodies):
        figures = native.drive(argv)
    # The reports of the last calls belong to them.
    time.sleep(SETTLE_S)
    spent = {name: processes.cpu_ms(process.pid) - before[name] for name, process in running.items()}
    calls = max(1, figures["calls_in_all"])
    figures["cpu"] = {name: ms / calls for name, ms in spent.items()}
    figures["cpu_ms"] = sum(spent.values()) / calls
    return figures


@contextmanager
def _beside(front: Front, load: Load, bodies: Path) -> Iterator[None]:
    if not load.big_bytes:
        yield
        return
    file = bodies / f"{load.big_bytes}.json"
    file.write_bytes(loads.body(load.big_bytes))
    big = ("-r", loads.BIG_PER_S, "-w", 0, "-d", load.seconds + WARM_UP_S)
    argv: Sequence[str] = native.load_argv(front.port, file, front.header, *big)
    process = processes.launch(argv, core=native.LOAD_CORE, log=bodies / "big.log", env={})
    try:
        yield
    finally:
        process.wait(native.LOAD_BOUND_S)
