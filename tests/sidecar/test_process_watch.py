"""What Linux says of a process: stopped, computing, or neither."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from agentserving_sidecar import process_watch
from agentserving_sidecar.process_watch import LOOK_EVERY_US, WINDOW_US, ProcessWatch, peer_pid

BUSY = "while True: pass"
IDLE = "import time; time.sleep(1000)"


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def looked_until(watch: ProcessWatch, expected: bool) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        watch.look(time.monotonic_ns() // 1000)
        if watch.is_computing is expected:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(("code", "is_computing"), [(BUSY, True), (IDLE, False)])
def test_a_process_that_uses_the_cpu_is_computing(code: str, is_computing: bool) -> None:
    with process(code) as child:
        assert looked_until(ProcessWatch(child.pid), is_computing)


def test_a_stopped_process_is_seen_as_stopped_until_it_goes_on() -> None:
    with process(IDLE) as child:
        watch = ProcessWatch(child.pid)
        for number, stopped in ((signal.SIGSTOP, True), (signal.SIGCONT, False)):
            child.send_signal(number)
            deadline = time.monotonic() + 20
            while watch.is_stopped is not stopped and time.monotonic() < deadline:
                watch.look(time.monotonic_ns() // 1000)
            assert watch.is_stopped is stopped


def test_a_process_that_cannot_be_seen_gives_no_answer() -> None:
    for pid in (0, 2**30):
        watch = ProcessWatch(pid)
        for now_us in (0, 2 * WINDOW_US):
            watch.look(now_us)
        assert (watch.is_stopped, watch.is_computing) == (False, None)


def test_the_process_at_the_other_end_of_a_socket_is_found(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen()
        client.connect(path)
        assert peer_pid(client) == os.getpid()


def test_looks_within_a_moment_read_the_process_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(process_watch, "usage", looks.append)
    watch = ProcessWatch(1)
    for now_us in (0, 1, LOOK_EVERY_US - 1, LOOK_EVERY_US):
        watch.look(now_us)
    assert len(looks) == 2
