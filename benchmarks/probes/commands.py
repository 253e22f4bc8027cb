"""Probe: start of a whole cluster, and CPU of a run in virtual time (imports excluded: they are in the start)."""

from __future__ import annotations

import contextlib
import io
import time

from agentserving_cli.main import main as command_line

from benchmarks.probes.running_cluster import cluster
from benchmarks.probes.worker import answer_rounds

REPLAY = (
    "replay", "--workload", "mixed", "--engines", "2", "--programs", "60", "--rate", "0.8", "--policy", "program-plas",
)  # fmt: skip
# Replays a round, of which the quickest counts: a replay is short compared with the pauses of a shared machine.
REPLAYS = 3


def replay_s() -> float:
    """CPU seconds of a replay in this process."""
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        command_line(list(REPLAY), standalone_mode=False)
    return time.process_time() - began


def measure() -> dict[str, float]:
    replays = [replay_s() for _ in range(REPLAYS)]
    began = time.perf_counter()
    with cluster(store="memory"):
        up_s = time.perf_counter() - began
    return {"virtual time, a replay (s CPU)": min(replays), "start of a cluster (s)": up_s}


if __name__ == "__main__":
    # The first replay pays for imports.
    replay_s()
    answer_rounds(measure)
