"""The limit of open files of a process that has raised it, and of its children."""

from __future__ import annotations

import subprocess
import sys

CHILD = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
PARENT = f"""
import resource, subprocess, sys
from agentserving_process import open_files
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
assert open_files.raise_limit() == hard
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
"""


def test_a_raised_limit_is_the_hard_one_and_is_inherited() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, timeout=60, check=True)
    soft, hard = done.stdout.split()
    assert soft == hard
