"""Ports, directories, flags, GPUs and background tasks of a one-machine cluster."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import threading
from pathlib import Path

import pytest
from agentserving.client import messages
from agentserving.client.values import Engine, EngineState
from agentserving.contract.budgets import Budget
from agentserving.contract.engine_http import VLLM_KEEP_ALIVE
from agentserving.v1 import engine_service_pb2, types_pb2
from agentserving_cli.local import cluster as cluster_module
from agentserving_cli.local.cluster import LocalCluster
from agentserving_cli.local.commands import control_plane
from agentserving_cli.local.engine_states import changes, until_given_calls
from agentserving_cli.local.layout import (
    ClusterSpec,
    ControlPlaneAddress,
    Ports,
    engine_env,
    gpus_of,
    memory_share,
    ranks_of,
    tool_flags,
    vllm_argv,
)
from agentserving_cli.local.ports import HIGHEST, LOWEST, free_ports, port_is_free
from agentserving_cli.local.process import Child, StartFailedError
from agentserving_cli.local.state_dir import StateDir, StateDirError, is_claimed, read_addresses
from agentserving_cli.up import proxy_in_the_way
from agentserving_engine.http.middleware import EngineMiddleware
from agentserving_gateway.envoy.clusters import ENGINE_IDLE_S
from support.eventually import DEADLINE_S
from support.served_plane import PlayedEngine, ServedPlane


def test_a_port_with_a_listener_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not port_is_free(port)
    assert port_is_free(port)


def test_free_ports_differ_and_no_outgoing_connection_takes_them() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    lowest_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert lowest_outgoing <= LOWEST or all(LOWEST <= port <= min(HIGHEST, lowest_outgoing - 1) for port in ports)


def test_a_directory_has_one_owner_until_it_is_released(tmp_path: Path) -> None:
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
    ("version", "message"), [("99", "written by a newer agentserving"), ("x", "not a directory of ours")]
)
def test_a_directory_of_another_version_is_refused_and_left_alone(tmp_path: Path, version: str, message: str) -> None:
    (tmp_path / "VERSION").write_text(version)
    with pytest.raises(StateDirError, match=message):
        StateDir(tmp_path).claim()
    assert (tmp_path / "VERSION").read_text() == version
    assert not (tmp_path / "ticket.key").exists()


def test_a_directory_that_cannot_be_created_is_reported_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateDirError, match=r"cannot be used: Not a directory.*--state-dir"):
        StateDir(tmp_path / "file" / "state").claim()


def test_the_ticket_key_is_stable_and_private(tmp_path: Path) -> None:
    for _ in range(2):
        state = StateDir(tmp_path)
        state.claim()
        state.release()
        key = (tmp_path / "ticket.key").read_bytes()
        assert len(key) == 32
    assert (tmp_path / "ticket.key").stat().st_mode & 0o077 == 0
    assert (tmp_path / "ticket.key").read_bytes() == key


def test_other_users_can_neither_read_the_directory_nor_stand_between_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "r"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    deep = StateDir(tmp_path / ("d" * 90))
    deep.claim()
    assert stat.S_IMODE(deep.home.stat().st_mode) == 0o700
    channel = deep.socket_dir("engine-0")
    assert channel.is_relative_to(runtime)
    channel.parent.chmod(0o755)
    with pytest.raises(StateDirError, match="open to other users"):
        deep.socket_dir("engine-1")
    elsewhere = channel.parent.rename(tmp_path / "elsewhere")
    channel.parent.symlink_to(elsewhere)
    with pytest.raises(StateDirError, match="belongs to one"):
        deep.socket_dir("engine-1")
    channel.parent.unlink()
    deep.release()


def test_a_socket_path_stays_short_in_a_deep_directory_and_ends_with_it(tmp_path: Path) -> None:
    deep, other = (StateDir(tmp_path / (letter * 120)) for letter in "de")
    for state in (deep, other):
        state.claim()
    channel = deep.socket_dir("engine-0")
    assert len(str(channel / "rank0.sock")) < 108
    assert channel != other.socket_dir("engine-0")
    deep.release()
    assert not channel.parent.exists()
    assert other.socket_dir("engine-0").exists()
    other.release()


def test_a_torn_address_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"gateway": ')
    assert read_addresses(tmp_path) == {}


def test_gpus_are_divided_among_engines() -> None:
    assert [list(gpus_of(i, 2, ["0", "1", "2", "3"])) for i in range(2)] == [["0", "1"], ["2", "3"]]
    assert [list(gpus_of(i, 3, ["0", "1"])) for i in range(3)] == [["0"], ["1"], ["0"]]
    assert list(gpus_of(0, 2, [])) == []
    assert memory_share(2, ["0"]) == ["--gpu-memory-utilization", "0.45"]
    assert memory_share(2, ["0", "1"]) == memory_share(2, []) == []


def test_a_flag_of_the_user_comes_last_and_a_real_model_is_not_a_dummy(tmp_path: Path) -> None:
    spec = ClusterSpec(tmp_path, model="org/model", engine_args=("--gpu-memory-utilization=0.3",))
    argv = vllm_argv(Path("python"), spec.model, 1, spec, "--gpu-memory-utilization", "0.45")
    assert argv[-1] == "--gpu-memory-utilization=0.3"
    assert argv[argv.index("--middleware") + 1] == f"{EngineMiddleware.__module__}.{EngineMiddleware.__qualname__}"
    assert "dummy" not in argv
    assert argv[argv.index("--served-model-name") + 1] == "org/model"


def test_vllm_parses_tool_calls_of_the_tiny_model_and_of_others_when_a_parser_is_named(tmp_path: Path) -> None:
    tiny, other = ClusterSpec(tmp_path), ClusterSpec(tmp_path, model="org/model")
    assert tool_flags(tiny) == ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    assert tool_flags(other) == []
    named = ClusterSpec(tmp_path, model="org/model", tool_parser="llama3_json", engine_args=("--tool-call-parser=x",))
    assert tool_flags(named)[-1] == "llama3_json"
    argv = vllm_argv(Path("python"), named.model, 1, named)
    assert "--enable-auto-tool-choice" in argv
    assert argv[-1] == "--tool-call-parser=x", "a flag of the user wins"


def test_a_change_of_an_engines_state_is_one_line_with_the_reason() -> None:
    def engine(engine_id: str, state: EngineState, reason: str = "") -> Engine:
        message = types_pb2.Engine(
            engine_id=engine_id, state=types_pb2.EngineState.ValueType(state), state_reason=reason
        )
        return messages.read(Engine, message)

    down = [engine("e0", EngineState.DOWN, "the process ended"), engine("e1", EngineState.READY)]
    assert changes({}, down) == ["e0 is down and gets no new calls: the process ended"]
    known = {"e0": EngineState.DOWN, "e1": EngineState.READY}
    assert changes(known, down) == []
    assert changes(known, [engine("e0", EngineState.LOADING)]) == ["e0 is loading and gets no new calls"]
    assert changes(known, [engine("e0", EngineState.READY)]) == ["e0 is ready again"]


async def test_a_cluster_is_ready_when_its_leader_gives_each_engine_calls() -> None:
    async with ServedPlane() as served:
        first, second = (PlayedEngine(served.engine_service) for _ in range(2))
        await first.hello("e0")
        ready = asyncio.create_task(until_given_calls(["e0", "e1"], f"127.0.0.1:{served.port}", ""))
        # It asks several times before each change.
        assert not (await asyncio.wait({ready}, timeout=0.5))[0], "the other engine has not attached"
        await second.hello("e1", health=types_pb2.ENGINE_HEALTH_LOADING)
        assert not (await asyncio.wait({ready}, timeout=0.5))[0], "it is loading"
        await second.say(report=engine_service_pb2.Report(seq=1, health=types_pb2.ENGINE_HEALTH_SERVING))
        await asyncio.wait_for(ready, DEADLINE_S)


@pytest.mark.parametrize(
    ("environment", "no_proxy"),
    [
        ({}, ""),
        ({"http_proxy": ""}, ""),
        ({"http_proxy": "http://p:1"}, "127.0.0.1"),
        ({"HTTP_PROXY": "http://p:1", "no_proxy": "corp.example"}, "corp.example,127.0.0.1"),
        ({"http_proxy": "http://p:1", "NO_PROXY": "localhost, 127.0.0.1"}, ""),
        ({"http_proxy": "http://p:1", "no_proxy": "*"}, ""),
    ],
)
def test_a_proxy_between_agents_and_this_machine_is_noticed(environment: dict[str, str], no_proxy: str) -> None:
    assert proxy_in_the_way(environment) == no_proxy


async def test_a_background_task_that_fails_ends_the_cluster_with_its_reason(tmp_path: Path) -> None:
    cluster = LocalCluster(ClusterSpec(tmp_path, engine="simulator", store="memory", engines=1))

    async def fails() -> None:
        raise OSError("injected")

    cluster._start_task("watch of the engines", fails())
    async with asyncio.timeout(10):
        assert await cluster.failed == "the watch of the engines failed: OSError: injected"
    await cluster.stop()


async def test_the_end_of_any_component_ends_the_start_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine dies while the control plane, which never comes up, is waited for."""
    monkeypatch.setattr(cluster_module, "STILL_EVERY_S", 0.1)
    (tmp_path / "engine").touch()
    (tmp_path / "plane").touch()

    async def never() -> bool:
        return False

    said: list[str] = []
    cluster = LocalCluster(ClusterSpec(tmp_path / "s", engine="simulator", store="memory", engines=1), said.append)
    engine = Child(
        name="engine", argv=["sh", "-c", "sleep 1; echo 'cannot start: no GPU'; exit 3"], env={}, ready=never,
        log=tmp_path / "engine", start_bound_s=60,
    )  # fmt: skip
    plane = Child(name="plane", argv=["sleep", "60"], env={}, ready=never, log=tmp_path / "plane", start_bound_s=60)
    cluster.children = {"engine": engine, "plane": plane}
    await engine.start()
    await plane.start()
    try:
        with pytest.raises(StartFailedError, match="engine ended with code 3: cannot start: no GPU"):
            await cluster._await_ready(plane)
        assert any("still waiting for plane" in line for line in said)
    finally:
        await cluster.stop()
    assert plane.process is not None
    assert plane.process.returncode is not None


def test_vllm_closes_idle_connections_long_after_the_gateway_does(tmp_path: Path) -> None:
    assert int(engine_env("e0", tmp_path, tmp_path, None)[VLLM_KEEP_ALIVE]) > 10 * ENGINE_IDLE_S


def test_the_budget_of_up_is_the_default_of_its_control_planes(tmp_path: Path) -> None:
    plane = ControlPlaneAddress("control-plane", 1, 2)
    ports = Ports(etcd_client=3, etcd_peer=4, control_planes=(plane,), gateway=5, gateway_http=6)
    spec = ClusterSpec(tmp_path, budget=Budget(tokens=200_000, calls=50))
    argv = list(control_plane(spec, tmp_path, ports, plane).argv)
    assert argv[argv.index("--default-budget") + 1] == "tokens=200000,calls=50"
    assert "--default-budget" not in control_plane(ClusterSpec(tmp_path), tmp_path, ports, plane).argv


@pytest.mark.parametrize(
    ("flags", "ranks"),
    [
        ((), 1),
        (("--data-parallel-size=2",), 2),
        (("--max-num-seqs=4", "--data-parallel-size", "4"), 4),
        (("-dp", "3"), 3),
        (("-dp=3",), 3),
        (("--data_parallel_size=2",), 2),
        (("--data-parallel-size",), 1),
        (("--data-parallel-size=many",), 1),
        (("--data-parallel-size-local=2",), 1),
    ],
)
def test_the_processes_of_an_engine_know_how_many_ranks_it_has(
    flags: tuple[str, ...], ranks: int, tmp_path: Path
) -> None:
    assert ranks_of(flags) == ranks
    env = engine_env("e0", tmp_path, tmp_path, 1, ranks=ranks)
    assert env.get("AGENTSERVING_RANKS", "1") == str(ranks)
    assert env["VLLM_CPU_OMP_THREADS_BIND"].split("|") == ["1"] * ranks


def test_who_reads_the_addresses_while_they_are_written_sees_the_old_or_the_new_ones(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    documents = [{"gateway": "x" * size} for size in (10, 100_000)]
    state.write_addresses(documents[0])
    seen, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append((tmp_path / "cluster.json").read_text())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(200):
            state.write_addresses(documents[number % 2])
    finally:
        done.set()
        reader.join()
    assert {len(json.loads(text)["gateway"]) for text in seen} <= {10, 100_000}
    assert [path.name for path in tmp_path.iterdir()] == ["cluster.json"]


def test_a_key_that_is_there_stays_and_its_public_half_is_made_again(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    state.claim()
    state.release()
    before = (state.home / "ticket.key").read_bytes()
    (state.home / "ticket.pub").unlink()
    state.claim()
    state.release()
    assert (state.home / "ticket.key").read_bytes() == before
    assert (state.home / "ticket.pub").exists()
    assert (state.home / "ticket.key").stat().st_mode & 0o777 == 0o600
