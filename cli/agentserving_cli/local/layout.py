"""What runs where on one machine: ports, directories, command lines. Pure, except for the CPU's flags and the
choice of ports."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from agentserving.contract.budgets import Budget
from agentserving.contract.channel import MAX_RANKS, RANKS_VARIABLE
from agentserving.contract.engine_http import KEEP_ALIVE_S, VLLM_KEEP_ALIVE
from agentserving.contract.policy import DEFAULT
from agentserving.contract.program_headers import ProgramHeader
from agentserving.contract.service_class import ServiceClass

from agentserving_cli.local.ports import free_ports

# Models that are made on this machine. TINY has random weights and a token for each byte: for measurements. SCRIPTED
# calls tools and has the context that coding agents need. WINDOWED and STATE_SPACE are like TINY, with sliding
# windows or Mamba 2 in half of their layers.
TINY, SCRIPTED, WINDOWED, STATE_SPACE = "tiny", "scripted", "windowed", "state-space"
BUILT_IN_CONTEXT = {TINY: 8192, SCRIPTED: 131_072, WINDOWED: 8192, STATE_SPACE: 8192}
RANDOM_WEIGHTS = (TINY, WINDOWED, STATE_SPACE)
# Of all; it needs no special tokens, of which TINY's tokenizer has none.
BUILT_IN_TOOL_PARSER = "hermes"
REPOSITORY_ROOTS = ("proto", "process", "controlplane", "gateway", "batches", "cli", "engine-image", "simulator")


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """What the user has chosen."""

    state_dir: Path
    _: KW_ONLY
    engine: str = "vllm"
    engines: int = 2
    store: str = "etcd"
    # One leads, the others are on standby; several need the store etcd.
    control_planes: int = 1
    policy: str = DEFAULT.name
    # Of each program that has none of its own.
    budget: Budget | None = None
    balancer: str = "prefix_aware"
    # Of programs that get none from a client or a key.
    service_class: ServiceClass = ServiceClass.STANDARD
    gateway_port: int = 0
    # For the built-in models and the simulator; other models get vLLM's default.
    max_num_seqs: int = 8
    # TINY, SCRIPTED, or what vLLM's --model takes; engines serve it under this name.
    model: str = TINY
    # Clients, commands and parts need keys; without, anyone who reaches a port is served.
    auth: bool = True
    # The certificate that clients see, and its key; None: clients use http.
    front_cert: Path | None = None
    front_key: Path | None = None
    # Flags of the JWTs that clients may present besides keys; none: no JWTs.
    token_flags: tuple[str, ...] = ()
    # vLLM's parser of tool calls; empty = that of the built-in models, none for others.
    tool_parser: str = ""
    # Headers of clients that name programs, and those of known agents that do not.
    program_headers: tuple[ProgramHeader, ...] = ()
    ignored_program_headers: tuple[str, ...] = ()
    # Flags for every engine; they come last, so they win.
    engine_args: tuple[str, ...] = ()

    @property
    def unticketed(self) -> str:
        """What engines do with a call that has no valid ticket. Without keys the front goes on while its picker is
        away, and such calls have none."""
        return "refuse" if self.auth else "last"


@dataclass(frozen=True, slots=True)
class EngineAddresses:
    """Ports of one engine and its sidecar."""

    engine_id: str
    http: int
    sidecar: int
    sidecar_http: int


@dataclass(frozen=True, slots=True)
class ControlPlaneAddress:
    """Ports of one control plane."""

    name: str
    grpc: int
    http: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Ports of one local cluster, all on 127.0.0.1."""

    etcd_client: int
    etcd_peer: int
    control_planes: tuple[ControlPlaneAddress, ...]
    gateway: int
    gateway_http: int
    engines: tuple[EngineAddresses, ...] = ()
    batches_http: int = 0

    @property
    def control_plane(self) -> str:
        """host:port of all control planes, separated by commas."""
        return ",".join(f"127.0.0.1:{plane.grpc}" for plane in self.control_planes)


def choose_ports(spec: ClusterSpec) -> Ports:
    """A free port for each server; the gateway's is the user's, if given."""
    free = iter(free_ports(5 + 2 * spec.control_planes + 3 * spec.engines))
    etcd_client, etcd_peer, gateway, gateway_http, batches_http = (next(free) for _ in range(5))
    planes = tuple(
        ControlPlaneAddress(f"control-plane-{i}" if i else "control-plane", next(free), next(free))
        for i in range(spec.control_planes)
    )
    engines = tuple(EngineAddresses(f"engine-{i}", next(free), next(free), next(free)) for i in range(spec.engines))
    return Ports(
        etcd_client=etcd_client,
        etcd_peer=etcd_peer,
        control_planes=planes,
        gateway=spec.gateway_port or gateway,
        gateway_http=gateway_http,
        batches_http=batches_http,
        engines=engines,
    )


def source_path() -> str:
    """PYTHONPATH for components: the source roots of a checkout, else the directory of the installed package."""
    here = Path(__file__).resolve()
    root = here.parents[3]
    roots = [root / name for name in REPOSITORY_ROOTS]
    return os.pathsep.join(str(path) for path in (roots if roots[0].is_dir() else [here.parents[2]]))


def component(module: str, *flags: str) -> list[str]:
    """Command line of one of our components."""
    return [sys.executable, "-m", module, *flags]


def cpu_dtype() -> str:
    """bfloat16 where the CPU has instructions for it, else float32, which then takes half the time a step."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return "float32"
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16"} else "float32"


def vllm_argv(python: Path, model: Path | str, port: int, spec: ClusterSpec, *more: str) -> list[str]:
    """Command line of a vLLM with our scheduler (started as a module: the `vllm` script looks for another name)."""
    context = BUILT_IN_CONTEXT.get(spec.model)
    built_in = [
        "--enforce-eager", "--dtype", cpu_dtype(), "--worker-extension-cls", "agentserving_engine.amx.AmxWorker",
        "--max-model-len", str(context),
        "--max-num-seqs", str(spec.max_num_seqs), *(["--load-format", "dummy"] if spec.model in RANDOM_WEIGHTS else []),
    ]  # fmt: skip
    return [
        str(python), "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(model), "--served-model-name", spec.model,
        "--host", "127.0.0.1", "--port", str(port),
        "--scheduler-cls", "agentserving_engine.scheduler.ProgramScheduler",
        "--middleware", "agentserving_engine.http.middleware.EngineMiddleware",
        *(built_in if context else []), *tool_flags(spec), *more, *spec.engine_args,
    ]  # fmt: skip


def tool_flags(spec: ClusterSpec) -> list[str]:
    """Without a parser vLLM refuses requests with tools. The right one depends on the model."""
    parser = spec.tool_parser or (BUILT_IN_TOOL_PARSER if spec.model in BUILT_IN_CONTEXT else "")
    return ["--enable-auto-tool-choice", "--tool-call-parser", parser] if parser else []


def engine_env(
    engine_id: str, channel: Path, home: Path, core: int | None, gpus: Sequence[str] = (), unticketed: str = "refuse",
    ranks: int = 1,
) -> dict[str, str]:  # fmt: skip
    """Environment of an engine. Engines share no cores and GPUs: `core` binds a CPU vLLM, `gpus` are this engine's."""
    env = {
        "AGENTSERVING_ENGINE_ID": engine_id,
        "AGENTSERVING_CHANNEL_DIR": str(channel),
        "AGENTSERVING_TICKET_KEY_FILE": str(home / "ticket.pub"),
        "AGENTSERVING_GATEWAY_KEY_FILE": str(home / "gateway.pub"),
        "AGENTSERVING_UNTICKETED": unticketed,
        "PYTHONPATH": source_path(),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        VLLM_KEEP_ALIVE: str(KEEP_ALIVE_S),
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    if core is not None:
        # One list of cores for each worker: the ranks of an engine share its core.
        env["VLLM_CPU_OMP_THREADS_BIND"] = "|".join([str(core)] * ranks)
    if ranks > 1:
        env[RANKS_VARIABLE] = str(ranks)
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return env


def ranks_of(engine_args: Sequence[str]) -> int:
    """vLLM's --data-parallel-size among an engine's flags; 1 without it, and where vLLM will refuse the value."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data-parallel-size", "--data_parallel_size", "-dp", dest="ranks", default="1", nargs="?")
    text = parser.parse_known_args(engine_args)[0].ranks or ""
    return int(text) if text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_RANKS else 1


def gpus_of(index: int, engines: int, gpus: Sequence[str]) -> Sequence[str]:
    """Equal shares of the GPUs; with more engines than GPUs each has one, shared."""
    if not gpus:
        return ()
    each = max(1, len(gpus) // engines)
    first = index * each % len(gpus)
    return gpus[first : first + each]


def memory_share(engines: int, gpus: Sequence[str]) -> list[str]:
    """vLLM's default is 0.9 of a GPU's memory; engines on one GPU split that."""
    per_gpu = -(-engines // len(gpus)) if gpus else 1
    return ["--gpu-memory-utilization", f"{0.9 / per_gpu:.2f}"] if per_gpu > 1 else []
