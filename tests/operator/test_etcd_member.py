"""A member of etcd that lost its volume joins its cluster again: with three real etcds, in the clear and by TLS."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agentserving_cli.local.cluster import find_etcd
from agentserving_cli.local.ports import free_ports
from agentserving_operator.certificates.renewal import renewed
from agentserving_operator.etcd_member import (
    EXISTING,
    NEW,
    Cluster,
    Decision,
    EtcdError,
    Member,
    config_of,
    decide,
    has_log,
    parse_flags,
    state_of,
)
from agentserving_operator.manifests.certificate_objects import leaves
from agentserving_operator.manifests.etcd_statefulset import CONFIG_FILE, etcd_statefulset
from agentserving_operator.manifests.tls import Leaf
from support.eventually import eventually
from support.operator_objects import make_cluster, only_container, pod_spec

NAMES = ("demo-etcd-0", "demo-etcd-1", "demo-etcd-2")
STARTED_S = 60.0


def member(name: str, *, started: bool = True, id: int = 7) -> Member:
    client_urls = ("http://c",) if started else ()
    return Member(id=id, name=name, peer_urls=("http://b:2380",), client_urls=client_urls)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([member("b")], Decision(state=EXISTING, remove=7, add=True)),
        ([member("b", started=False)], Decision(state=NEW)),
        ([member("", started=False)], Decision(state=EXISTING)),
        ([], Decision(state=EXISTING, add=True)),
    ],
    ids=["lost its log", "never started", "added again, not started", "removed, not added again"],
)
def test_what_a_member_without_a_log_does_follows_from_the_list_of_members(
    members: list[Member], expected: Decision
) -> None:
    others = [Member(id=1, name="a", peer_urls=("http://a:2380",), client_urls=("http://a:2379",))]
    assert decide([*others, *members], "b", "http://b:2380") == expected


class Scripted:
    """A cluster of one other member that answers as scripted, an error where the script has one."""

    def __init__(self, *answers: list[Member] | EtcdError, started: bool = True) -> None:
        self.answers, self.calls = list(answers), list[str]()
        self._other = Member(
            id=1, name="a", peer_urls=("http://a:2380",), client_urls=("http://a:2379",) if started else ()
        )

    def known_to_peer(self, peer_url: str) -> list[Member]:
        return [self._other, member("b")]

    def members(self, client_urls: Any) -> list[Member]:
        answer = self.answers.pop(0)
        if isinstance(answer, EtcdError):
            raise answer
        return [self._other, *answer]

    def remove(self, client_urls: Any, member_id: int) -> None:
        self.calls.append(f"remove {member_id}")

    def add(self, client_urls: Any, peer_url: str) -> None:
        self.calls.append(f"add {peer_url}")


FLAGS = {"name": "b", "initial-cluster": "a=http://a:2380,b=http://b:2380"}


def test_nothing_is_removed_before_a_majority_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentserving_operator.etcd_member.RETRY_S", 0.0)
    cluster = Scripted(EtcdError("no leader"), [member("b")])
    assert state_of(FLAGS, cluster) == EXISTING  # type: ignore[arg-type]
    assert cluster.calls == ["remove 7", "add http://b:2380"]


def test_without_a_majority_it_fails_and_removes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentserving_operator.etcd_member.GIVE_UP_S", -1.0)
    cluster = Scripted(EtcdError("no leader"))
    with pytest.raises(EtcdError, match="no leader"):
        state_of(FLAGS, cluster)  # type: ignore[arg-type]
    assert cluster.calls == []


def test_a_cluster_in_which_no_other_member_has_started_is_new() -> None:
    assert state_of(FLAGS, Scripted(started=False)) == NEW  # type: ignore[arg-type]


class Rejecting(Scripted):
    """The other member ends the first connections."""

    rejections = 2

    def known_to_peer(self, peer_url: str) -> list[Member]:
        if self.rejections:
            self.rejections -= 1
            raise EtcdError(f"{peer_url}: connection reset")
        return super().known_to_peer(peer_url)


def test_a_peer_that_rejects_a_connection_is_asked_again_and_no_sign_of_a_new_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agentserving_operator.etcd_member.RETRY_S", 0.0)
    cluster = Rejecting([member("b")])
    assert state_of(FLAGS, cluster) == EXISTING  # type: ignore[arg-type]
    assert cluster.calls == ["remove 7", "add http://b:2380"]
    assert state_of(FLAGS, Rejecting(started=False)) == NEW  # type: ignore[arg-type]
    monkeypatch.setattr("agentserving_operator.etcd_member.GIVE_UP_S", -1.0)
    with pytest.raises(EtcdError, match="connection reset"):
        state_of(FLAGS, Rejecting())  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n", b"x"])
def test_a_peer_where_nothing_listens_has_not_started_and_one_that_says_nothing_is_an_error(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def reply() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises(EtcdError, match=url):
            Cluster({}).known_to_peer(url)
        thread.join()
    assert Cluster({}).known_to_peer(url) == []
    assert Cluster({}).known_to_peer("http://no-such-host.invalid:2380") == []


def test_flags_of_tls_are_nested_in_the_configuration_file() -> None:
    flags = parse_flags(
        [
            "--name=a",
            "--quota-backend-bytes=1024",
            "--cert-file=/c",
            "--peer-client-cert-auth",
            "--client-cert-allowed-hostname=c",
            "--peer-cert-allowed-hostname=p",
        ]
    )
    assert config_of(flags, EXISTING) == {
        "name": "a", "quota-backend-bytes": 1024, "initial-cluster-state": "existing",
        "client-transport-security": {"cert-file": "/c", "allowed-hostname": ["c"]},
        "peer-transport-security": {"client-cert-auth": True, "allowed-hostname": ["p"]},
    }  # fmt: skip


class Etcds:
    """Three members as the StatefulSet starts them: the init container's program, then etcd with its file."""

    def __init__(self, home: Path, *, tls: bool) -> None:
        self.home, self.tls = home, tls
        self.cluster = make_cluster(store={"etcd": {"members": 3}}, tls={"issuer": "Operator" if tls else "None"})
        self._set = etcd_statefulset(self.cluster)
        ports = free_ports(9)
        self._ports = {name: tuple(ports[3 * i : 3 * i + 3]) for i, name in enumerate(NAMES)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        if tls:
            self._issue()

    def _issue(self) -> None:
        names = {leaf.value: names for leaf, names in leaves(self.cluster).items()}
        names[Leaf.ETCD] = ["127.0.0.1", *names[Leaf.ETCD]]
        found = renewed("demo", None, {}, names, datetime.datetime.now(datetime.UTC))
        (self.home / "ca.crt").write_bytes(found.authority.trusted)
        for leaf, pair in found.leaves.items():
            own = "tls" if leaf == Leaf.ETCD else leaf
            (self.home / f"{own}.crt").write_bytes(pair.cert)
            (self.home / f"{own}.key").write_bytes(pair.key)

    def as_client(self, leaf: str) -> list[Member]:
        """The members, as etcd lists them to the owner of a certificate. EtcdError for one that it does not admit."""
        files = {"trusted-ca-file": "ca.crt", "cert-file": f"{leaf}.crt", "key-file": f"{leaf}.key"}
        client = Cluster({f"peer-{flag}": str(self.home / file) for flag, file in files.items()})
        return client.members([f"https://127.0.0.1:{self._ports[NAMES[0]][0]}"])

    def _on_this_machine(self, name: str, arguments: list[str]) -> list[str]:
        """The container's arguments with addresses and directories of this machine."""
        client, peer, http = self._ports[name]
        scheme = "https" if self.tls else "http"
        urls = {
            "--name": name, "--data-dir": str(self.home / name / "data"),
            "--listen-client-urls": f"{scheme}://127.0.0.1:{client}",
            "--advertise-client-urls": f"{scheme}://127.0.0.1:{client}",
            "--listen-peer-urls": f"{scheme}://127.0.0.1:{peer}",
            "--initial-advertise-peer-urls": f"{scheme}://127.0.0.1:{peer}",
            "--initial-cluster": ",".join(f"{n}={scheme}://127.0.0.1:{self._ports[n][1]}" for n in NAMES),
            "--listen-metrics-urls": f"http://127.0.0.1:{http}",
        }  # fmt: skip
        found = []
        for argument in arguments:
            flag, _, value = argument.partition("=")
            value = value.replace("/etc/agentserving/etcd-tls", str(self.home))
            text = urls.get(flag, value)
            found.append(f"{flag}={text}" if text else flag)
        return [each.replace(CONFIG_FILE, str(self.home / name / "etcd.json")) for each in found]

    def start(self, name: str) -> None:
        """The pod of one member, up to the start of etcd."""
        (self.home / name).mkdir(exist_ok=True)
        (join,) = pod_spec(self._set)["initContainers"]
        argv = [sys.executable, *join["command"][1:], *self._on_this_machine(name, join["args"])]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False, env={**os.environ})
        (self.home / f"{name}.join.log").write_text(done.stderr)
        assert done.returncode == 0, done.stderr
        with (self.home / f"{name}.log").open("ab") as log:
            arguments = self._on_this_machine(name, only_container(self._set)["args"])
            self.processes[name] = subprocess.Popen([find_etcd(), *arguments], stdout=log, stderr=log)

    def is_healthy(self, name: str) -> bool:
        try:
            url = f"http://127.0.0.1:{self._ports[name][2]}/health"
            with urllib.request.urlopen(url, timeout=2) as response:
                return bool(json.load(response)["health"] == "true")
        except OSError:
            return False

    def eventually(self, what: str, condition: Callable[[], bool]) -> None:
        try:
            eventually(condition, what, STARTED_S, 0.1)
        except AssertionError as error:
            logs = "\n".join((self.home / f"{name}.log").read_text()[-1500:] for name in self.processes)
            raise AssertionError(f"{error}\n{logs}") from error

    def stop(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def lose_volume(self, name: str) -> None:
        self.stop(name)
        shutil.rmtree(self.home / name)


@pytest.fixture(params=[False, True], ids=["in the clear", "tls"])
def etcds(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Etcds]:
    made = Etcds(tmp_path, tls=request.param)
    try:
        for name in NAMES:
            made.start(name)
        made.eventually("all members are healthy", lambda: all(map(made.is_healthy, NAMES)))
        yield made
    finally:
        for name in made.processes:
            made.stop(name)


@pytest.mark.etcd
@pytest.mark.timeout(240)
def test_a_member_that_lost_its_volume_joins_again(etcds: Etcds) -> None:
    etcds.lose_volume(NAMES[2])
    etcds.start(NAMES[2])
    etcds.eventually("the member is back", lambda: etcds.is_healthy(NAMES[2]))
    assert "lost its volume" in (etcds.home / f"{NAMES[2]}.join.log").read_text()
    # Once it has a log of its own, a restart is an ordinary one.
    etcds.stop(NAMES[2])
    etcds.start(NAMES[2])
    etcds.eventually("the member is back after a restart", lambda: etcds.is_healthy(NAMES[2]))
    assert (etcds.home / f"{NAMES[2]}.join.log").read_text() == ""
    # And so is every other member's, one after the other: that is a majority without the one that came back.
    for name in NAMES[:2]:
        etcds.lose_volume(name)
        etcds.start(name)
        etcds.eventually(f"{name} is back", lambda name=name: etcds.is_healthy(name))  # type: ignore[misc]


@pytest.mark.etcd
@pytest.mark.timeout(240)
def test_a_volume_whose_log_is_gone_counts_as_lost(etcds: Etcds) -> None:
    name = NAMES[1]
    etcds.stop(name)
    data = etcds.home / name / "data"
    shutil.rmtree(data / "member" / "wal")
    assert not has_log(data)
    etcds.start(name)
    etcds.eventually("the member is back", lambda: etcds.is_healthy(name))
    assert [each.name.partition(".lost-")[0] for each in data.parent.glob("data.lost-*")] == ["data"]


def _reads_names_in_files() -> bool:
    """etcd 3.5 knows who may be a client only by a flag, and members of several get a file."""
    version = subprocess.run([find_etcd(), "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, version.split()[2].split(".")[:2])) >= (3, 6)


@pytest.mark.etcd
@pytest.mark.timeout(240)
@pytest.mark.skipif(not _reads_names_in_files(), reason="etcd older than 3.6 is not supported with three members")
def test_three_members_admit_control_planes_and_each_other_and_nobody_else(tmp_path: Path) -> None:
    etcds = Etcds(tmp_path, tls=True)
    try:
        for name in NAMES:
            etcds.start(name)
        etcds.eventually("all members are healthy", lambda: all(map(etcds.is_healthy, NAMES)))
        for leaf in (Leaf.CONTROL_PLANE, "tls"):
            assert {each.name for each in etcds.as_client(leaf)} == set(NAMES)
        for leaf in (Leaf.GATEWAY, Leaf.OPERATOR, Leaf.ADMIN, Leaf.CLIENT):
            with pytest.raises(EtcdError, match="UNAVAILABLE"):
                etcds.as_client(leaf)
    finally:
        for name in etcds.processes:
            etcds.stop(name)
