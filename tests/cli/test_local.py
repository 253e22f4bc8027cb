"""Ports, directories and GPUs of a one-machine cluster."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from agentserving_cli.local.layout import ClusterSpec, gpus_of, memory_share, port_is_free, vllm_argv
from agentserving_cli.local.state_dir import StateDir, StateDirError, is_claimed, read_addresses


def test_a_port_that_somebody_listens_on_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not port_is_free(port)
    assert port_is_free(port)


def test_a_directory_is_claimed_once_and_free_again_after(tmp_path: Path) -> None:
    first = StateDir(tmp_path)
    first.claim()
    first.write_addresses({"pid": 7})
    assert is_claimed(tmp_path)
    with pytest.raises(StateDirError, match=r"in use by another cluster \(process 7\).*--state-dir"):
        StateDir(tmp_path).claim()
    first.release()
    assert not is_claimed(tmp_path)
    second = StateDir(tmp_path)
    second.claim()
    second.release()


@pytest.mark.parametrize(
    ("version", "told"), [("99", "written by a newer agentserving"), ("x", "not a directory of ours")]
)
def test_a_directory_of_another_version_is_refused_and_left_alone(tmp_path: Path, version: str, told: str) -> None:
    (tmp_path / "VERSION").write_text(version)
    with pytest.raises(StateDirError, match=told):
        StateDir(tmp_path).claim()
    assert (tmp_path / "VERSION").read_text() == version
    assert not (tmp_path / "ticket.key").exists()


def test_a_directory_that_cannot_be_made_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateDirError, match=r"cannot be used: Not a directory.*--state-dir"):
        StateDir(tmp_path / "file" / "state").claim()


def test_the_ticket_key_is_kept_and_private(tmp_path: Path) -> None:
    for _ in range(2):
        state = StateDir(tmp_path)
        state.claim()
        state.release()
        key = (tmp_path / "ticket.key").read_bytes()
        assert len(key) == 32
    assert (tmp_path / "ticket.key").stat().st_mode & 0o077 == 0
    assert (tmp_path / "ticket.key").read_bytes() == key


def test_a_socket_path_stays_short_in_a_deep_directory_and_ends_with_it(tmp_path: Path) -> None:
    deep, other = (StateDir(tmp_path / (letter * 120)) for letter in "de")
    for state in (deep, other):
        state.claim()
    channel = deep.channel_dir("engine-0")
    assert len(str(channel / "rank0.sock")) < 108
    assert channel != other.channel_dir("engine-0")
    deep.release()
    assert not channel.parent.exists()
    assert other.channel_dir("engine-0").exists()
    other.release()


def test_a_torn_address_file_is_no_cluster(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"gateway": ')
    assert read_addresses(tmp_path) == {}


def test_gpus_are_shared_out_among_engines() -> None:
    assert [list(gpus_of(i, 2, ["0", "1", "2", "3"])) for i in range(2)] == [["0", "1"], ["2", "3"]]
    assert [list(gpus_of(i, 3, ["0", "1"])) for i in range(3)] == [["0"], ["1"], ["0"]]
    assert list(gpus_of(0, 2, [])) == []
    assert memory_share(2, ["0"]) == ["--gpu-memory-utilization", "0.45"]
    assert memory_share(2, ["0", "1"]) == memory_share(2, []) == []


def test_a_flag_of_the_user_comes_last_and_a_real_model_is_not_a_dummy(tmp_path: Path) -> None:
    spec = ClusterSpec(tmp_path, model="org/model", engine_args=("--gpu-memory-utilization=0.3",))
    argv = vllm_argv(Path("python"), spec.model, 1, spec, "--gpu-memory-utilization", "0.45")
    assert argv[-1] == "--gpu-memory-utilization=0.3"
    assert "dummy" not in argv
    assert argv[argv.index("--served-model-name") + 1] == "org/model"
