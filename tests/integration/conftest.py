"""A cluster of real vLLM engines, started once for all tests that need it because that takes a minute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from integration.local_cluster import Cluster


@pytest.fixture(scope="session")
def vllm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster") / "state", "--engines", "2", "--model", "tiny")
    try:
        yield cluster
    finally:
        cluster.close()
