"""`kubectl agentserving render restore`: pods that restore what the operator's etcd runs on, with etcd's own tool."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from agentserving_cli.kube.clusters import RESOURCE
from agentserving_cli.kube.main import main
from agentserving_cli.kube.restoring import BUMP_REVISIONS, SNAPSHOT, restore_pods
from agentserving_cli.local.cluster import find_etcd
from agentserving_operator.manifests.control_plane_deployment import control_plane_deployment
from agentserving_operator.manifests.etcd_statefulset import DATA_DIR, etcd_statefulset
from agentserving_operator.received_snapshot import EtcdRunsError, is_whole, move_away
from click.testing import CliRunner
from support.etcd_server import EtcdServer
from support.kubectl_stand_in import install
from support.operator_objects import IMAGES, make_cluster, only_container

pytestmark = pytest.mark.timeout(120)
TOOLS = Path(find_etcd()).parent


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    server = EtcdServer()
    server.start()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def snapshot(etcd: EtcdServer, tmp_path: Path) -> Path:
    run(TOOLS / "etcdctl", f"--endpoints={etcd.endpoint}", "put", "key", "value")
    path = tmp_path / "table.db"
    run(TOOLS / "etcdctl", f"--endpoints={etcd.endpoint}", "snapshot", "save", path)
    return path


def run(*argv: str | Path) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pods(members: int) -> list[dict[str, Any]]:
    cluster = make_cluster(store={"type": "Etcd", "etcd": {"members": members}})
    return restore_pods(etcd_statefulset(cluster), control_plane_deployment(cluster))


@pytest.mark.parametrize("members", [1, 3])
def test_each_member_has_a_pod_with_its_volume_and_the_images_of_the_cluster(members: int) -> None:
    made = pods(members)
    assert [each["metadata"]["name"] for each in made] == [f"demo-etcd-restore-{i}" for i in range(members)]
    for number, each in enumerate(made):
        spec = each["spec"]
        claim = {"claimName": f"data-demo-etcd-{number}"}
        assert spec["volumes"][0] == {"name": "data", "persistentVolumeClaim": claim}
        (receive,), (restore,) = spec["initContainers"], spec["containers"]
        assert (receive["image"], restore["image"]) == (IMAGES.agentserving, IMAGES.etcd)
        assert f"--name=demo-etcd-{number}" in restore["command"]
        # Admitted under Pod Security `restricted`, as the pods of the cluster.
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert restore["securityContext"] == only_container(statefulset(members))["securityContext"]


def statefulset(members: int) -> dict[str, Any]:
    return etcd_statefulset(make_cluster(store={"type": "Etcd", "etcd": {"members": members}}))


def restored(pod: dict[str, Any], snapshot: Path, here: Path) -> list[str]:
    """The command of a pod, with paths of this machine, and addresses in place of names."""
    (container,) = pod["spec"]["containers"]
    text = "\n".join(container["command"]).replace(SNAPSHOT, str(snapshot)).replace(DATA_DIR, str(here))
    for each in pod["spec"]["hostAliases"]:
        (name,) = each["hostnames"]
        text = text.replace(name, each["ip"])
    tool, *words = text.split("\n")
    return [str(TOOLS / tool), *words]


@pytest.mark.parametrize("members", [1, 3])
def test_etcds_tool_restores_a_member_with_these_flags(members: int, snapshot: Path, tmp_path: Path) -> None:
    """Those that move the revision on are left away: the etcd of this machine's tests is older than they are."""
    for number, pod in enumerate(pods(members)):
        *words, bump, mark = restored(pod, snapshot, tmp_path / str(number))
        assert (bump, mark) == (f"--bump-revision={BUMP_REVISIONS}", "--mark-compacted")
        run(*words)
        assert list((tmp_path / str(number) / "data/member/wal").glob("*.wal"))


def test_a_tool_that_cannot_move_the_revision_on_restores_nothing(snapshot: Path, tmp_path: Path) -> None:
    (pod,) = pods(1)
    command = restored(pod, snapshot, tmp_path)
    if "--bump-revision" in run(TOOLS / "etcdutl", "snapshot", "restore", "--help"):
        run(*command)
        found = json.loads(run(TOOLS / "etcdutl", "snapshot", "status", tmp_path / "data/member/snap/db", "-w", "json"))
        assert found["revision"] > BUMP_REVISIONS
    else:
        assert subprocess.run(command, capture_output=True, check=False).returncode
        assert not (tmp_path / "data").exists()


def test_a_snapshot_is_waited_for_until_all_of_it_is_there(snapshot: Path, tmp_path: Path) -> None:
    data = snapshot.read_bytes()
    partial = tmp_path / "partial.db"
    assert not is_whole(partial)
    for end in (0, 32, 512, len(data) - 512, len(data) - 1):
        partial.write_bytes(data[:end])
        assert not is_whole(partial)
    partial.write_bytes(data[:5000] + b"?" + data[5001:])
    assert not is_whole(partial)
    partial.write_bytes(data)
    assert is_whole(partial)


def test_data_of_before_are_kept_and_those_of_a_running_etcd_refused(etcd: EtcdServer, tmp_path: Path) -> None:
    assert move_away(tmp_path / "data") is None
    (tmp_path / "data/member/snap").mkdir(parents=True)
    (tmp_path / "data/member/snap/db").write_bytes(b"x")
    kept = move_away(tmp_path / "data")
    assert kept is not None
    assert (kept / "member/snap/db").read_bytes() == b"x"
    assert not (tmp_path / "data").exists()
    with pytest.raises(EtcdRunsError, match="is running"):
        move_away(etcd.data_dir)
    assert etcd.data_dir.exists()


def test_the_command_reads_what_is_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("KUBECTL_ANSWERS", str(tmp_path))
    cluster = make_cluster(store={"type": "Etcd"})
    for name, found in (
        (RESOURCE, {"items": [{"metadata": {"name": "demo", "namespace": "ns"}, "spec": {}}]}),
        ("statefulset", etcd_statefulset(cluster)),
        ("deployment", control_plane_deployment(cluster)),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    done = CliRunner().invoke(main, ["render", "restore"])
    assert done.exit_code == 0, done.output
    assert list(yaml.safe_load_all(done.output)) == pods(1)
