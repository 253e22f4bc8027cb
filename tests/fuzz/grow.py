"""`python -m fuzz.grow TARGET SECONDS`: looks for inputs of a target, guided by coverage (atheris, libFuzzer).

Inputs that reach new code are added to the corpus, and those that break something are written there as crash-...: both
are for you to commit. One process for each target, because a whole process is instrumented.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(
    include=["agentserving", "agentserving_controlplane", "agentserving_gateway", "agentserving_process"]
):
    from fuzz.targets import CORPUS, TARGETS, quiet

MAX_BYTES = 1024


def main() -> None:
    """Runs until the time is over, or an input breaks something."""
    name, seconds = sys.argv[1:]
    corpus = CORPUS / name
    quiet()
    options = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", f"-artifact_prefix={corpus}/crash-"]
    atheris.Setup([sys.argv[0], str(corpus), *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
