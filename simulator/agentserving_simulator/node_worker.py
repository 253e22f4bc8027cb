"""``python -m agentserving_simulator.node_worker``: a further node of a simulated engine that spans several.

It computes nothing and connects to nothing: it is there so that groups of pods start, drain, restart and end as those
of vLLM do.
"""

from __future__ import annotations

import signal


def main() -> None:
    """Returns at SIGTERM or SIGINT."""
    ends = {signal.SIGTERM, signal.SIGINT}
    # As PID 1 of a container a process gets only signals that it handles.
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    signal.sigwait(ends)


if __name__ == "__main__":
    main()
