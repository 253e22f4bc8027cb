"""Threads of our processes share one arena of malloc, so that what a flood has used is used again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Allocates in four threads as gRPC core does, under the supervisor, and lists malloc's arenas on stderr.
PROCESS = """
import asyncio, ctypes, threading
from agentserving_process import supervision

def allocate(all_have):
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc(100_000)
    all_have.wait()

async def serve(supervisor):
    all_have = threading.Barrier(5)
    threads = [threading.Thread(target=allocate, args=(all_have,)) for _ in range(4)]
    for each in threads:
        each.start()
    await asyncio.to_thread(all_have.wait)
    ctypes.CDLL(None).malloc_stats()

raise SystemExit(supervision.run(serve))
"""


def arenas(environment: dict[str, str]) -> int:
    inherited = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], env=inherited | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.count("\nArena ") + done.stderr.startswith("Arena ")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_threads_share_one_arena_unless_the_environment_says_otherwise() -> None:
    assert arenas({}) == 1
    assert arenas({"MALLOC_ARENA_MAX": "4"}) == 4
