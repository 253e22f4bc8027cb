"""Probe: what a write costs on its way into a real etcd by group commit, in time and in CPU of the control plane.

Each probe has an etcd of its own, on a disk of its own directory, so that the two checkouts share nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.probes.worker import answer_rounds, attribute

# A wave: rows that each land together with one of the roots, as ends of calls do.
WAVES, ROWS, ROOTS = 2, 500, 20
READY_S = 60.0
VALUE = b"x" * 500
_CORE = "agentserving_controlplane"
EtcdStore = attribute("EtcdStore", f"{_CORE}.store.etcd.store", f"{_CORE}.etcd_store")
GroupCommit = attribute("GroupCommit", f"{_CORE}.store.group_commit", f"{_CORE}.group_commit")
Write = attribute("Write", f"{_CORE}.store.port", f"{_CORE}.store")
find_etcd = attribute("find_etcd", "agentserving_cli.local.cluster")
_rounds = itertools.count()


@contextmanager
def etcd() -> Iterator[str]:
    """The address of an etcd that accepts connections. TimeoutError."""
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as first:
        with socket.create_server(("127.0.0.1", 0)) as second:
            client, peer = (f"127.0.0.1:{each.getsockname()[1]}" for each in (first, second))
        first.close()
        flags = [
            f"--data-dir={directory}", f"--listen-client-urls=http://{client}",
            f"--advertise-client-urls=http://{client}", f"--listen-peer-urls=http://{peer}",
            f"--initial-advertise-peer-urls=http://{peer}", f"--initial-cluster=default=http://{peer}",
            "--log-level=error",
        ]  # fmt: skip
        process = subprocess.Popen([find_etcd(), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait(client)
            yield client
        finally:
            process.kill()
            process.wait()


def _wait(address: str) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + READY_S
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no etcd at {address} after {READY_S:g} s") from None
            time.sleep(0.05)


async def measured(address: str) -> dict[str, float]:
    """Microseconds per write: until it has landed, and of this process's CPU."""
    store = EtcdStore((address,), f"/{next(_rounds)}", lease_s=60)
    commits = GroupCommit(store, await store.acquire("probe"))
    commits.start()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(WAVES):
        for number in range(ROWS):
            commits.put_together(_group(number))
        await commits.flush()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    await commits.close()
    await store.close()
    writes = WAVES * ROWS
    return {"etcd commit per write (us)": 1e6 * wall / writes, "etcd commit per write (us CPU)": 1e6 * cpu / writes}


def _group(number: int) -> list[Any]:
    return [Write(f"rows/{number}", VALUE), Write(f"roots/{number % ROOTS}", VALUE)]


if __name__ == "__main__":
    with etcd() as endpoint:
        answer_rounds(lambda: asyncio.run(measured(endpoint)))
