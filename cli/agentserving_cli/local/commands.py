"""How each component of a one-machine cluster is started. Pure: addresses in, command lines out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentserving_cli.local.layout import (
    TINY,
    ClusterSpec,
    ControlPlaneAddress,
    EngineAddresses,
    Ports,
    component,
    source_path,
)

START_BOUND_S = 30.0
# A leader that cannot renew its lease for so long stops leading. With nobody to take over that gains nothing, and
# engines that fill every core of a machine keep etcd from answering for seconds.
LEASE_S, LEASE_ALONE_S = 5, 30
# A cold machine takes two minutes for the tiny model, a busy one five; real ones are read from disk, or fetched.
TINY_START_BOUND_S, MODEL_START_BOUND_S = 600.0, 3600.0


@dataclass(frozen=True, slots=True)
class Command:
    """`ready_url` answers 200 once it serves, within `start_bound_s`; `ports` are those it listens on."""

    name: str
    argv: Sequence[str]
    ready_url: str
    ports: tuple[int, ...]
    env: Mapping[str, str]
    start_bound_s: float = START_BOUND_S


def _ours(name: str, argv: Sequence[str], ready_url: str, *ports: int) -> Command:
    return Command(name, argv, ready_url, ports, {"PYTHONPATH": source_path()})


def etcd(binary: str, home: Path, ports: Ports) -> Command:
    """One member; data of an earlier run is taken over under the new addresses."""
    client, peer = (f"http://127.0.0.1:{port}" for port in (ports.etcd_client, ports.etcd_peer))
    argv = [
        binary, "--name", "local", "--data-dir", str(home / "etcd"),
        "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"local={peer}",
        "--auto-compaction-retention", "1", "--logger", "zap", "--log-level", "warn",
    ]  # fmt: skip
    if (home / "etcd").exists():
        argv.append("--force-new-cluster")
    return Command("etcd", argv, f"{client}/health", (ports.etcd_client, ports.etcd_peer), {})


def control_plane(spec: ClusterSpec, home: Path, ports: Ports, plane: ControlPlaneAddress) -> Command:
    """One of them; its table is in `spec.store`."""
    argv = component(
        "agentserving_controlplane", "--listen", f"127.0.0.1:{plane.grpc}",
        "--http-port", str(plane.http), "--store", spec.store,
        "--etcd-endpoints", f"127.0.0.1:{ports.etcd_client}", "--etcd-prefix", "/agentserving/local",
        "--ticket-key-file", str(home / "ticket.key"), "--policy", spec.policy, "--balancer", spec.balancer,
        "--lease-s", str(LEASE_S if spec.control_planes > 1 else LEASE_ALONE_S),
    )  # fmt: skip
    return _ours(plane.name, argv, f"http://127.0.0.1:{plane.http}/readyz", plane.grpc, plane.http)


def gateway(home: Path, ports: Ports) -> Command:
    """What agents talk to."""
    argv = component(
        "agentserving_gateway", "--listen", f"127.0.0.1:{ports.gateway}",
        "--control-plane", ports.control_plane, "--http-port", str(ports.gateway_http),
        "--state-dir", str(home / "gateway"),
    )  # fmt: skip
    return _ours("gateway", argv, f"http://127.0.0.1:{ports.gateway_http}/readyz", ports.gateway, ports.gateway_http)


def simulator(spec: ClusterSpec, home: Path, engine: EngineAddresses, channel: Path) -> Command:
    """An engine without a model."""
    argv = component(
        "agentserving_simulator", "--listen", f"127.0.0.1:{engine.http}", "--engine-id", engine.engine_id,
        "--channel-dir", str(channel), "--ticket-key-file", str(home / "ticket.key"), "--model", spec.model,
        "--max-num-seqs", str(spec.max_num_seqs), *spec.engine_args,
    )  # fmt: skip
    return _ours(engine.engine_id, argv, f"http://127.0.0.1:{engine.http}/health", engine.http)


def vllm(spec: ClusterSpec, engine: EngineAddresses, argv: Sequence[str], env: Mapping[str, str]) -> Command:
    """A real one; `argv` and `env` as `vllm_argv` and `engine_env` give them."""
    url = f"http://127.0.0.1:{engine.http}/health"
    if spec.model == TINY:
        return Command(engine.engine_id, argv, url, (engine.http,), env, TINY_START_BOUND_S)
    # Whether a real model may be fetched is for the user's own environment to say.
    env = {name: value for name, value in env.items() if name != "HF_HUB_OFFLINE"}
    return Command(engine.engine_id, argv, url, (engine.http,), env, MODEL_START_BOUND_S)


def sidecar(home: Path, ports: Ports, engine: EngineAddresses, channel: Path) -> Command:
    """Beside its engine."""
    name = f"{engine.engine_id}-sidecar"
    argv = component(
        "agentserving_sidecar", "--engine-id", engine.engine_id, "--engine-address", f"127.0.0.1:{engine.http}",
        "--channel-dir", str(channel), "--control-plane", ports.control_plane,
        "--state-dir", str(home / name), "--listen", f"127.0.0.1:{engine.sidecar}",
        "--http-port", str(engine.sidecar_http), "--drain-s", "3",
    )  # fmt: skip
    url = f"http://127.0.0.1:{engine.sidecar_http}/readyz"
    return _ours(name, argv, url, engine.sidecar, engine.sidecar_http)
