"""Two tenants with keys load one engine through the front: they share it by weight, whatever one of them tries."""

from __future__ import annotations

import itertools
import json
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from integration.local_cluster import Cluster
from support.eventually import eventually

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(1200)]

SLOTS, TOKENS = 8, 50
# Calls of equal length that start together end together: a tenant takes all slots of a round where it is behind, so its
# share is a matter of the engine's order only while several times as many of its calls wait.
HONEST_CALLS = 3 * SLOTS
# Tokens before those that are counted, while callers begin, and tokens counted.
WARM_UP, COUNTED = 60 * TOKENS, 240 * TOKENS


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("shares") / "state"
    made = Cluster(
        directory, "--engine", "simulator", "--engines", "1", "--engine-arg", f"--max-num-seqs={SLOTS}", auth=True
    )
    try:
        yield made
    finally:
        made.close()


class Load:
    """Threads that call without a pause until `stop`; `tokens` counts those of answers by tenant, as they come.

    Not when a call has ended: of one with n > 1 some sequences may be long done while others wait for newer programs.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._url = cluster.addresses["gateway"] + "/completions"
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(100)
        self._working: list[Any] = []
        self.tokens: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, tenant: str, key: str, threads: int, *, mints: bool = False, n: int = 1) -> None:
        ids = itertools.count()
        self._working += [
            self._pool.submit(self._work, tenant, key, f"{tenant}-{number}", ids if mints else None, n)
            for number in range(threads)
        ]

    def _work(self, tenant: str, key: str, program: str, ids: Iterator[int] | None, n: int) -> None:
        while not self._stopped.is_set():
            headers = {
                "content-type": "application/json",
                "authorization": f"Bearer {key}",
                "x-agentserving-program-id": program if ids is None else f"{program}-{next(ids)}",
            }
            body = {"model": "tiny", "prompt": "x", "max_tokens": TOKENS, "n": n, "stream": True}
            request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    for line in answer:
                        self._count(tenant, line)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != 503:
                    raise
                # There is no leader for a moment.

    def _count(self, tenant: str, line: bytes) -> None:
        if line.startswith(b"data: {"):
            words = sum(len(choice["text"].split()) for choice in json.loads(line[6:])["choices"])
            with self._lock:
                self.tokens[tenant] += words

    def _received(self, tokens: int) -> Counter[str]:
        def is_done() -> bool:
            failed = [work for work in self._working if work.done()]
            assert not failed, failed[0].exception()
            return self.tokens.total() >= goal

        with self._lock:
            before, goal = self.tokens.copy(), self.tokens.total() + tokens
        eventually(is_done, "the calls", 400)
        with self._lock:
            return self.tokens - before

    def shares(self) -> dict[str, float]:
        """What part each tenant receives of the next tokens, from when the engine is in its stride."""
        self._received(WARM_UP)
        received = self._received(COUNTED)
        return {tenant: count / received.total() for tenant, count in received.items()}

    def stop(self) -> None:
        self._stopped.set()
        for work in self._working:
            work.result()
        self._pool.shutdown()


def test_minting_fan_out_and_n_buy_nothing_and_weights_are_kept_across_a_failover(cluster: Cluster) -> None:
    keys = {tenant: cluster.cli("key", "create", tenant).strip() for tenant in ("honest", "greedy")}
    load = Load(cluster)
    try:
        load.add("honest", keys["honest"], HONEST_CALLS)
        load.add("greedy", keys["greedy"], 30, mints=True, n=2)
        # 0.525 is what the issue permits.
        assert load.shares()["greedy"] <= 0.525
        cluster.cli("tenant", "set", "honest", "--weight", "3")
        cluster.kill("agentserving_controlplane")
        cluster.wait(lambda: "honest" in _listed(cluster))
        assert load.shares()["honest"] == pytest.approx(0.75, rel=0.05)
    finally:
        load.stop()
    assert json.loads(cluster.cli("tenant", "list", "-o", "json"))["tenants"][0]["weight"] == 3
    cluster.cli("tenant", "remove", "honest")
    assert json.loads(cluster.cli("tenant", "list", "-o", "json")) == {"tenants": []}


def _listed(cluster: Cluster) -> str:
    try:
        return cluster.cli("tenant", "list")
    except AssertionError:
        return ""
