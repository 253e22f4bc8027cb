"""A batch flood and an interactive client on one engine of a real cluster: keys, header, order, commands."""

from __future__ import annotations

import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from integration.local_cluster import Cluster
from support.eventually import eventually

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(900)]

SLOTS, BATCH_CALLS, BATCH_TOKENS = 4, 40, 120


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("classes") / "state"
    flags = ("--engine", "simulator", "--engines", "1", "--engine-arg", f"--max-num-seqs={SLOTS}", "--policy", "fcfs")
    made = Cluster(directory, *flags, auth=True)
    try:
        yield made
    finally:
        made.close()


def ask(cluster: Cluster, key: str, program: str, tokens: int, service: str = "", path: str = "/completions") -> Any:
    headers = {
        "content-type": "application/json", "authorization": f"Bearer {key}", "x-agentserving-program-id": program,
        **({"x-agentserving-service": service} if service else {}),
    }  # fmt: skip
    body = {"model": "tiny", "prompt": "x", "max_tokens": tokens, "messages": [{"role": "user", "content": "x"}]}
    url = cluster.addresses["gateway"] + path
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def test_interactive_calls_pass_a_flood_of_batch_calls_which_is_served_all_the_same(cluster: Cluster) -> None:
    """Even under FCFS, where each call would wait for all that came before it."""
    nightly = cluster.cli("key", "create", "default", "--service-class", "batch").strip()
    chat = cluster.cli("key", "create", "default", "--service-class", "interactive").strip()
    ended: list[str] = []
    stopped = threading.Event()

    def batch(number: int) -> None:
        if not stopped.is_set():
            ask(cluster, nightly, f"nightly-{number}", BATCH_TOKENS)
            ended.append(f"nightly-{number}")

    with ThreadPoolExecutor(BATCH_CALLS) as pool:
        flood = [pool.submit(batch, number) for number in range(BATCH_CALLS)]
        eventually(lambda: int(cluster_overview(cluster)["calls_waiting"]) > BATCH_CALLS // 2, "the flood waits")
        before = len(ended)
        ask(cluster, chat, "chat", 1)
        passed, left = len(ended) - before, BATCH_CALLS - len(ended)
        for each in flood:
            each.result()
    assert left > 2 * SLOTS, "the flood still waited when the chat was answered"
    assert passed <= 3 * SLOTS, "calls that ran already, and those that took their slots before the chat came"
    assert len(ended) == BATCH_CALLS, "batch is served all the same"
    assert cluster.program("chat")["service_class"] == "SERVICE_CLASS_INTERACTIVE"
    assert cluster.program("nightly-0")["service_class"] == "SERVICE_CLASS_BATCH"
    assert "service    batch" in cluster.cli("get", "nightly-0")


def cluster_overview(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.cli("top", "-o", "json"))
    return found


def test_a_class_that_the_key_may_not_use_is_refused_and_a_tenants_class_changes_at_once(cluster: Cluster) -> None:
    key = cluster.cli("key", "create", "globex").strip()
    ask(cluster, key, "free", 1, "interactive")
    cluster.cli("tenant", "set", "globex", "--service-class", "standard")
    assert "standard" in cluster.cli("tenant", "list")
    for path, kind in (("/completions", "permission_error"), ("/messages", "permission_error")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(cluster, key, "refused", 1, "interactive", path)
        with refused.value as answer:
            assert answer.code == 403
            body = json.load(answer)
        assert body["error"]["type"] == kind
        assert "at best standard" in body["error"]["message"]
    ask(cluster, key, "lower", 1, "batch")
    cluster.cli("tenant", "set", "globex", "--service-class", "any")
    ask(cluster, key, "again", 1, "interactive")


def test_a_command_runs_in_the_class_that_run_gives_it(cluster: Cluster) -> None:
    where, code = ("--state-dir", str(cluster.directory)), "import os; print(os.environ['AGENTSERVING_PROGRAM_ID'])"
    program = cluster.cli("run", *where, "--service-class", "batch", "--quiet", "--", sys.executable, "-c", code)
    assert cluster.program(program.strip())["service_class"] == "SERVICE_CLASS_BATCH"
    assert "batch" in cluster.cli("ps", "--all")
