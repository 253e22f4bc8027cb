"""What an import loads: the engine process no gRPC, an agent that goes by headers no gRPC and no httpx."""

from __future__ import annotations

import subprocess
import sys

import agentserving
import pytest

BARE = "import agentserving\nwith agentserving.program('x', control_plane=''): pass"


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        (
            "import agentserving_engine.policy, agentserving.contract.channel, agentserving.contract.ticket",
            "grpc google httpx asyncio",
        ),
        (
            "import agentserving.contract.accounting, agentserving.contract.policy, agentserving.programs.tracking",
            "grpc google httpx asyncio",
        ),
        (BARE, "grpc google httpx httpx2"),
        ("import agentserving; agentserving.Client", "httpx httpx2"),
        ("import agentserving; agentserving.instrument()", "grpc google"),
    ],
)
def test_an_import_loads_no_more_than_it_needs(program: str, absent: str) -> None:
    check = f"{program}\nimport sys\nprint(*sorted(set({absent.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == ([], "")


def test_every_public_name_is_there_and_nothing_else_is() -> None:
    for name in set(agentserving.__all__) - {"__version__"}:
        assert getattr(agentserving, name).__module__.startswith("agentserving.")
    assert set(agentserving.__all__) <= set(dir(agentserving))
    with pytest.raises(AttributeError, match="nonsense"):
        agentserving.nonsense  # noqa: B018
