"""A simulated cluster for the suites of the client, once for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import agentserving
import pytest
from integration.local_cluster import Cluster


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`agentserving up --engine simulator --store memory`."""
    flags = ("--engine", "simulator", "--engines", "2", "--store", "memory")
    made = Cluster(tmp_path_factory.mktemp("client") / "state", *flags)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def cluster(simulated: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """With the environment that `up` prints, the control plane's address, and hooks in force."""
    monkeypatch.setenv("OPENAI_BASE_URL", simulated.addresses["gateway"])
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("AGENTSERVING_CONTROL_PLANE", simulated.addresses["control_plane"])
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    agentserving.instrument()
    yield simulated
    agentserving.uninstrument()
