"""Probe: start of a whole cluster, and CPU of a run in virtual time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.probes.running_cluster import cluster
from benchmarks.probes.worker import answer_rounds

REPLAY = (
    "replay", "--workload", "mixed", "--engines", "2", "--programs", "60", "--rate", "0.8", "--policy", "program-plas",
)  # fmt: skip


def measure() -> dict[str, float]:
    before = os.times()
    command = str(Path(sys.executable).with_name("agentserving"))
    subprocess.run([command, *REPLAY], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    replay_s = after.children_user + after.children_system - before.children_user - before.children_system
    began = time.perf_counter()
    with cluster(store="memory"):
        up_s = time.perf_counter() - began
    return {"virtual time, a replay (s CPU)": replay_s, "start of a cluster (s)": up_s}


if __name__ == "__main__":
    answer_rounds(measure)
