"""`agentserving backup check` on snapshots of a real etcd, taken while a control plane leads on it."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from agentserving.contract.identity import Role
from agentserving.contract.ids import ProgramId
from agentserving_cli.local.cluster import find_etcd
from agentserving_cli.main import main
from agentserving_controlplane.backup import prefixes_of
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.key_operations import CreateKey
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.store.port import Write
from agentserving_controlplane.table.programs import OpenRequest
from agentserving_controlplane.table.rows import SCHEMA_VERSION, row_key
from agentserving_controlplane.table.states import Outcome
from click.testing import CliRunner, Result
from controlplane.leader_builders import ACME, GLOBEX, admit, attach
from controlplane.table_builders import key
from integration.local_cluster import Cluster
from support.etcd_server import EtcdServer
from support.eventually import eventually
from support.served_plane import SETTINGS

pytestmark = pytest.mark.timeout(180)

DEMO, OTHER = "/agentserving/ns/demo", "/agentserving/ns/other"


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    server = EtcdServer()
    server.start()
    try:
        yield server
    finally:
        server.close()


async def fill(endpoint: str, prefix: str, *damaged: Write) -> int:
    """Five programs of two tenants, one closed and one paused, two calls in flight and a key. Returns the epoch.

    The leader does not give its lease up, as one that is killed.
    """
    store = EtcdStore((endpoint,), prefix)
    plane = ControlPlane(SETTINGS, store, await store.acquire("10.0.0.1:7070 pod"), lambda error: None)
    await plane.recover(store)
    await attach(plane)
    for name in ("closed", "paused", "idle"):
        await plane.programs.open(OpenRequest(tenant=ACME, program_id=ProgramId(name)))
    await plane.programs.close(key("closed", "acme"), Outcome.COMPLETED)
    await plane.programs.pause(key("paused", "acme"))
    admit(plane, "busy")
    admit(plane, "busy", tenant=GLOBEX)
    await plane.api_keys.create(CreateKey(role=Role.CLIENT, tenant=ACME, name="ci"))
    await plane.commits.flush()
    await plane.commits.close(5)
    if damaged:
        await store.commit(plane.epoch, damaged)
    await store.close()
    return plane.epoch


def save(etcd: EtcdServer, path: Path) -> Path:
    run(Path(find_etcd()).with_name("etcdctl"), f"--endpoints={etcd.endpoint}", "snapshot", "save", path)
    return path


def check(snapshot: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["backup", "check", str(snapshot), *more])


def reports(result: Result) -> list[dict[str, Any]]:
    document, _, _ = result.stdout.partition("\nError")
    found: list[dict[str, Any]] = json.loads(document)
    return found


def test_a_snapshot_under_load_can_be_led_on_and_is_counted(etcd: EtcdServer, tmp_path: Path) -> None:
    epoch = asyncio.run(fill(etcd.endpoint, DEMO))
    result = check(save(etcd, tmp_path / "snapshot.db"), "-o", "json")
    assert result.exit_code == 0, result.output
    (report,) = reports(result)
    assert (report["prefix"], report["epoch"], report["unreadable"], report["error"]) == (DEMO, epoch, {}, "")
    assert report["programs"] == {"active": 3, "tool_wait": 0, "paused": 1, "closed": 1}
    assert (report["calls_in_flight"], report["keys"], report["tenants"]) == (2, 1, 0)
    result = check(tmp_path / "snapshot.db")
    assert result.exit_code == 0
    assert "3 active, 1 paused, 1 closed; calls in flight: 2" in result.output


def test_each_item_that_cannot_be_read_is_named_and_fails_the_check(etcd: EtcdServer, tmp_path: Path) -> None:
    bad = row_key("acme", "busy")
    asyncio.run(fill(etcd.endpoint, OTHER, Write(bad, b"\xc1"), Write("policy", b"\xc1")))
    result = check(save(etcd, tmp_path / "snapshot.db"), "--prefix", OTHER + "/", "-o", "json")
    assert result.exit_code == 1
    (report,) = reports(result)
    assert set(report["unreadable"]) == {bad, "policy"}
    assert sum(report["programs"].values()) == 4
    result = check(tmp_path / "snapshot.db", "--prefix", OTHER)
    assert "programs/acme/busy" in result.output


def test_rows_of_a_newer_version_fail_the_check(etcd: EtcdServer, tmp_path: Path) -> None:
    prefix = "/agentserving/ns/newer"
    newer = msgspec.msgpack.encode((SCHEMA_VERSION + 1, {}))
    asyncio.run(fill(etcd.endpoint, prefix, Write(row_key("acme", "busy"), newer)))
    result = check(save(etcd, tmp_path / "snapshot.db"), "--prefix", prefix)
    assert result.exit_code == 1
    assert "upgrade" in result.output


def test_a_file_that_is_no_whole_snapshot_is_refused(etcd: EtcdServer, tmp_path: Path) -> None:
    whole = save(etcd, tmp_path / "snapshot.db").read_bytes()
    for name, data in (("cut", whole[:-4096]), ("changed", whole[:5000] + b"?" + whole[5001:]), ("other", b"x" * 600)):
        (tmp_path / name).write_bytes(data)
        result = check(tmp_path / name)
        assert (result.exit_code, result.output.startswith("Error: the snapshot cannot be restored:")) == (1, True)


def test_a_prefix_without_a_cluster_is_refused_with_those_that_are_there(etcd: EtcdServer, tmp_path: Path) -> None:
    asyncio.run(fill(etcd.endpoint, "/a/b"))
    result = check(save(etcd, tmp_path / "snapshot.db"), "--prefix", "/agentserving/ns/typo")
    assert result.exit_code == 1
    assert "/a/b" in result.output


def test_a_cluster_of_this_machine_returns_to_its_snapshot(tmp_path: Path) -> None:
    """As docs/backup.md says it."""
    home, snapshot = tmp_path / "state", tmp_path / "snapshot.db"
    tools = Path(find_etcd()).parent

    def started() -> Cluster:
        return Cluster(home, "--engine", "simulator", "--engines", "1", auth=True)

    cluster = started()
    try:
        call(cluster, "kept", 1)
        (etcd,) = [each.cmdline() for each in cluster.tree if each.cmdline()[0].endswith("/etcd")]
        own = home / "keys" / "etcd"
        certificates = [f"--cacert={own / 'ca.crt'}", f"--cert={own / 'etcd.crt'}", f"--key={own / 'etcd.key'}"]
        endpoint = f"--endpoints={etcd[etcd.index('--listen-client-urls') + 1]}"
        run(tools / "etcdctl", endpoint, *certificates, "snapshot", "save", snapshot)
        call(cluster, "later", 1)
    finally:
        cluster.close()
    shutil.rmtree(home / "etcd")
    run(tools / "etcdutl", "snapshot", "restore", snapshot, "--data-dir", home / "etcd")
    cluster = started()
    try:
        # The snapshot remembers the lease of its leader; Ready means that another one leads.
        assert completed(cluster, "kept") == 1
        assert cluster.program_or_none("later") == {}
        call(cluster, "kept", 2)
    finally:
        cluster.close()


def completed(cluster: Cluster, program: str) -> int:
    return int(cluster.program_or_none(program).get("calls_completed", 0))


def call(cluster: Cluster, program: str, counted: int) -> None:
    """One call; returns when the program has had so many."""
    headers = {"authorization": f"Bearer {cluster.key}", "x-agentserving-program-id": program}
    body = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]}
    url = f"{cluster.addresses['gateway']}/chat/completions"
    assert httpx.post(url, json=body, headers=headers, timeout=60, trust_env=False).status_code == 200
    eventually(lambda: completed(cluster, program) == counted, f"{counted} calls of {program} are counted")


def run(*argv: str | Path) -> None:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_clusters_are_found_among_other_keys_of_an_etcd() -> None:
    keys = [
        "/registry/pods/d/x",
        "/a/d/programs/t\0p",
        "/a/d/keys/k",
        "/a/leader",
        "/b/leader",
        "/c/d/policy",
        "/x/d/other",
    ]
    assert prefixes_of(keys) == ["/a", "/b", "/c"]
    assert prefixes_of([]) == []
