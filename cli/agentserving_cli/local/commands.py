"""The command line of each component of a one-machine cluster. Pure: addresses in, command lines out."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from agentserving.contract import program_headers
from agentserving.contract.budgets import text_of

from agentserving_cli.local.credentials import Credentials
from agentserving_cli.local.layout import (
    BUILT_IN_CONTEXT,
    ClusterSpec,
    ControlPlaneAddress,
    EngineAddresses,
    Ports,
    component,
    source_path,
)

# A component that cannot start ends within seconds and is reported then; the bound is for one that hangs on a machine
# that is busy with everything else.
START_BOUND_S = 120.0
# A leader that cannot renew its lease for so long stops leading. Without a standby that gains nothing, and engines that
# use every core of a machine keep etcd from answering for seconds.
LEASE_S, LEASE_ALONE_S = 5, 30
# A cold machine takes two minutes for a built-in model, a busy one five; real models are read from disk or downloaded.
BUILT_IN_START_BOUND_S, MODEL_START_BOUND_S = 600.0, 3600.0


class Certificates(Protocol):
    """What a client of a component needs."""

    def context(self) -> ssl.SSLContext:
        """What a connection to the served address trusts."""


@dataclass(frozen=True, slots=True)
class ServedCertificate:
    """Trusts the very certificate in a file, whatever names it has and whoever signed it: it is this machine's own."""

    file: Path

    def context(self) -> ssl.SSLContext:
        """Reads the file."""
        context = ssl.create_default_context(cafile=str(self.file))
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """`ready_url` answers 200 once the component serves, within `start_bound_s`, to a client with `certificates` where
    it asks for them; `ports` are those it listens on."""

    name: str
    argv: Sequence[str]
    ready_url: str
    ports: tuple[int, ...]
    env: Mapping[str, str]
    start_bound_s: float = START_BOUND_S
    certificates: Certificates | None = None


def _ours(name: str, argv: Sequence[str], ready_url: str, *ports: int) -> Command:
    return Command(name=name, argv=argv, ready_url=ready_url, ports=ports, env={"PYTHONPATH": source_path()})


def etcd(spec: ClusterSpec, binary: str, home: Path, ports: Ports) -> Command:
    """One member; it takes over the data of an earlier run under its new addresses. With keys, it admits
    only the cluster's own certificate."""
    scheme = "https" if spec.auth else "http"
    client, peer = (f"{scheme}://127.0.0.1:{port}" for port in (ports.etcd_client, ports.etcd_peer))
    argv = [
        binary, "--name", "local", "--data-dir", str(home / "etcd"),
        "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"local={peer}",
        "--auto-compaction-retention", "1", "--logger", "zap", "--log-level", "warn",
    ]  # fmt: skip
    own = Credentials(home).etcd
    for prefix in ("", "peer-") if spec.auth else ():
        argv += [
            f"--{prefix}cert-file", str(own.cert), f"--{prefix}key-file", str(own.key),
            f"--{prefix}trusted-ca-file", str(own.ca), f"--{prefix}client-cert-auth",
        ]  # fmt: skip
    if (home / "etcd").exists():
        argv.append("--force-new-cluster")
    return Command(
        name="etcd",
        argv=argv,
        ready_url=f"{client}/health",
        ports=(ports.etcd_client, ports.etcd_peer),
        env={},
        certificates=own if spec.auth else None,
    )


def _etcd_tls(spec: ClusterSpec, home: Path) -> Sequence[str]:
    own = Credentials(home).etcd
    flags = ("--etcd-tls-ca", str(own.ca), "--etcd-tls-cert", str(own.cert), "--etcd-tls-key", str(own.key))
    return flags if spec.auth and spec.store == "etcd" else ()


def _auth(spec: ClusterSpec) -> str:
    # Said in both cases: the user's environment may say the other.
    return f"--client-auth={'keys' if spec.auth else 'none'}"


def _token(spec: ClusterSpec, home: Path, part: str) -> Sequence[str]:
    return ("--part-token-file", str(Credentials(home).file(part))) if spec.auth else ()


def _metrics(spec: ClusterSpec, home: Path) -> Sequence[str]:
    return ("--metrics-token-file", str(Credentials(home).metrics_token)) if spec.auth else ()


def control_plane(spec: ClusterSpec, home: Path, ports: Ports, plane: ControlPlaneAddress) -> Command:
    """One control plane; its table is in `spec.store`."""
    keys = Credentials(home)
    argv = component(
        "agentserving_controlplane", "--listen", f"127.0.0.1:{plane.grpc}", "--streams-listen", "127.0.0.1:0",
        "--http-port", str(plane.http), *_metrics(spec, home), "--store", spec.store,
        "--etcd-endpoints", f"127.0.0.1:{ports.etcd_client}", "--etcd-prefix", "/agentserving/local",
        "--ticket-key-file", str(home / "ticket.key"), "--policy", spec.policy, "--balancer", spec.balancer,
        "--service-class", spec.service_class.label,
        "--lease-s", str(LEASE_S if spec.control_planes > 1 else LEASE_ALONE_S),
        *_etcd_tls(spec, home), _auth(spec), *spec.token_flags,
        *(("--default-budget", text_of(spec.budget)) if spec.budget else ()),
        *(("--bootstrap-keys", str(keys.bootstrap_file)) if spec.auth else ()),
    )  # fmt: skip
    return _ours(plane.name, argv, f"http://127.0.0.1:{plane.http}/readyz", plane.grpc, plane.http)


def _batches_socket(directory: Path) -> str:
    return f"unix:{directory / 'batches.sock'}"


def batches(spec: ClusterSpec, home: Path, directory: Path, ports: Ports) -> Command:
    """Files and batches. `directory`: of its socket."""
    scheme, trusted = ("https", ("--gateway-certificate", str(spec.front_cert))) if spec.front_cert else ("http", ())
    argv = component(
        "agentserving_batches", "--listen", _batches_socket(directory), "--data-dir", str(home / "batches"),
        "--gateway", f"{scheme}://127.0.0.1:{ports.gateway}", *trusted, "--gateway-key-file", str(home / "gateway.pub"),
        "--http-port", str(ports.batches_http), *_metrics(spec, home),
    )  # fmt: skip
    return _ours("batches", argv, f"http://127.0.0.1:{ports.batches_http}/readyz", ports.batches_http)


def gateway(spec: ClusterSpec, run_dir: Path, ports: Ports, batches_dir: Path | None = None) -> Command:
    """Envoy, the address for agents. `batches_dir`: of the batch service's socket; None: there is none."""
    batches = ("--batches", _batches_socket(batches_dir)) if batches_dir is not None else ()
    argv = component(
        # The picker is one loop, and each thread has connections of its own to it and to the engines.
        "agentserving_gateway.front", "--listen", f"127.0.0.1:{ports.gateway}", "--run-dir", str(run_dir),
        "--workers", "1", *batches, _auth(spec), *_front_tls(spec), *_program_headers(spec),
    )  # fmt: skip
    if spec.front_cert is None:
        return _ours("gateway", argv, f"http://127.0.0.1:{ports.gateway}/health", ports.gateway)
    command = _ours("gateway", argv, f"https://127.0.0.1:{ports.gateway}/health", ports.gateway)
    return replace(command, certificates=ServedCertificate(spec.front_cert))


def _front_tls(spec: ClusterSpec) -> Sequence[str]:
    return ("--front-cert", str(spec.front_cert), "--front-key", str(spec.front_key)) if spec.front_cert else ()


def _program_headers(spec: ClusterSpec) -> Sequence[str]:
    # Given in both cases, as the user's environment may have the variables.
    return (
        f"--program-headers={program_headers.text_of(spec.program_headers)}",
        f"--ignored-program-headers={','.join(spec.ignored_program_headers)}",
    )


def picker(spec: ClusterSpec, home: Path, run_dir: Path, ports: Ports) -> Command:
    """Tells Envoy where each request goes."""
    argv = component(
        "agentserving_gateway", "--run-dir", str(run_dir),
        "--control-plane", ports.control_plane, "--http-port", str(ports.gateway_http), *_metrics(spec, home),
        _auth(spec), *spec.token_flags, *_front_tls(spec), *_token(spec, home, "gateway"),
        "--ticket-key-file", str(home / "gateway.key"), *_program_headers(spec),
    )  # fmt: skip
    return _ours("picker", argv, f"http://127.0.0.1:{ports.gateway_http}/readyz", ports.gateway_http)


def simulator(spec: ClusterSpec, home: Path, engine: EngineAddresses, channel: Path) -> Command:
    """An engine without a model."""
    argv = component(
        "agentserving_simulator", "--listen", f"127.0.0.1:{engine.http}", "--engine-id", engine.engine_id,
        "--channel-dir", str(channel), "--ticket-key-file", str(home / "ticket.pub"),
        "--gateway-key-file", str(home / "gateway.pub"), "--unticketed", spec.unticketed, "--model", spec.model,
        "--max-num-seqs", str(spec.max_num_seqs), *spec.engine_args,
    )  # fmt: skip
    return _ours(engine.engine_id, argv, f"http://127.0.0.1:{engine.http}/health", engine.http)


def vllm(spec: ClusterSpec, engine: EngineAddresses, argv: Sequence[str], env: Mapping[str, str]) -> Command:
    """A real engine; `argv` and `env` as `vllm_argv` and `engine_env` give them."""
    url, built_in = f"http://127.0.0.1:{engine.http}/health", spec.model in BUILT_IN_CONTEXT
    if not built_in:
        # Whether a real model may be downloaded is up to the user's own environment.
        env = {name: value for name, value in env.items() if name != "HF_HUB_OFFLINE"}
    bound_s = BUILT_IN_START_BOUND_S if built_in else MODEL_START_BOUND_S
    return Command(
        name=engine.engine_id, argv=argv, ready_url=url, ports=(engine.http,), env=env, start_bound_s=bound_s
    )


def sidecar(spec: ClusterSpec, home: Path, ports: Ports, engine: EngineAddresses, channel: Path) -> Command:
    name = f"{engine.engine_id}-sidecar"
    argv = component(
        "agentserving_sidecar", "--engine-id", engine.engine_id, "--engine-address", f"127.0.0.1:{engine.http}",
        "--channel-dir", str(channel), "--control-plane", ports.control_plane,
        "--state-dir", str(home / name), "--listen", f"127.0.0.1:{engine.sidecar}",
        "--http-port", str(engine.sidecar_http), *_metrics(spec, home), "--drain-s", "3",
        *(("--ticket-key-file", str(home / "ticket.pub")) if spec.auth else ()),
        *_token(spec, home, "sidecar"),
    )  # fmt: skip
    url = f"http://127.0.0.1:{engine.sidecar_http}/readyz"
    return _ours(name, argv, url, engine.sidecar, engine.sidecar_http)
