"""The fronts that are compared: what runs, on which port, and what of this machine's software it needs.

A front that cannot run here is not left out in silence: `unavailable` says why.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentserving_gateway.front import find_envoy

from benchmarks.peers import peer_configs
from benchmarks.records import ROOT

PROGRAM = "x-agentserving-program-id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One process of a front. Parts with a `ready_url` are started one after the other."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    ready_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """`parts` writes its configuration into a fresh directory; `header` names a program."""

    name: str
    port: int
    parts: Callable[[Path], list[Part]]
    header: str = PROGRAM
    unavailable: str = ""
    # Calls a second beyond which it is not loaded: it would only queue.
    most_per_s: float = float("inf")


def ours(name: str, python: Path, port: int, engine_port: int, engines: int) -> Front:
    """All of our processes, of the checkout that `python` belongs to."""

    def parts(home: Path) -> list[Part]:
        argv = [str(python), "-m", "benchmarks.peers.own", home, port, engine_port, engines]
        text = subprocess.run([str(each) for each in argv], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        return [Part(**{**each, "ready_url": ""}) for each in json.loads(text)]

    return Front(name=name, port=port, parts=parts)


def _envoy(config: Callable[[int, Sequence[int]], object], port: int, engines: Sequence[int], home: Path) -> Part:
    file = home / "envoy.json"
    file.write_text(json.dumps(config(port, engines)))
    argv = [find_envoy(), "-c", str(file), "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
    return Part(name="envoy", argv=argv)


def _named(variable: str, command: str) -> str | None:
    return os.environ.get(variable) or shutil.which(command)


def peers(first: int, engines: Sequence[int]) -> list[Front]:
    """Everything that is compared with ours."""
    return [
        Front(name="envoy", port=first, parts=lambda home: [_envoy(peer_configs.envoy, first, engines, home)]),
        _file_front("nginx", "NGINX_BIN", first + 1, engines),
        _file_front("haproxy", "HAPROXY_BIN", first + 2, engines),
        _llm_d(first + 3, engines),
        _litellm(first + 4, engines),
    ]


def _file_front(name: str, variable: str, port: int, engines: Sequence[int]) -> Front:
    binary = _named(variable, name)
    render = {"nginx": peer_configs.nginx, "haproxy": peer_configs.haproxy}[name]

    def parts(home: Path) -> list[Part]:
        file = home / f"{name}.conf"
        file.write_text(render(port, engines, home))
        flags = {"nginx": ["-p", str(home), "-c", str(file)], "haproxy": ["-f", str(file)]}[name]
        libraries = os.environ.get("PEERS_LIBRARY_PATH", "")
        return [Part(name=name, argv=[str(binary), *flags], env={"LD_LIBRARY_PATH": libraries})]

    missing = "" if binary else f"no {name}: `apt-get install {name}`, or set {variable}"
    return Front(name=name, port=port, parts=parts, unavailable=missing)


def _llm_d(port: int, engines: Sequence[int]) -> Front:
    binary = _named("EPP_BIN", "epp")
    grpc = port + 20

    def parts(home: Path) -> list[Part]:
        (home / "endpoints.yaml").write_text(peer_configs.endpoints(engines))
        (home / "epp.yaml").write_text(peer_configs.epp(home / "endpoints.yaml"))
        argv = [
            str(binary), "--pool-name", "p", "--pool-namespace", "d", "--config-file", str(home / "epp.yaml"),
            "--grpc-port", str(grpc), "--grpc-health-port", str(grpc + 1), "--metrics-port", str(grpc + 2),
            "--secure-serving=false", "-v", "0",
        ]  # fmt: skip
        front = _envoy(lambda at, to: peer_configs.envoy_with_epp(at, grpc), port, engines, home)
        # One core is what all of a front's processes have.
        return [Part(name="epp", argv=argv, env={"GOMAXPROCS": "1"}), front]

    missing = "" if binary else "no epp: `go build ./cmd/epp` in a checkout of llm-d-router, then set EPP_BIN"
    return Front(name="llm-d", port=port, parts=parts, header="x-llm-d-inference-fairness-id", unavailable=missing)


def _litellm(port: int, engines: Sequence[int]) -> Front:
    binary = _named("LITELLM_BIN", "litellm")

    def parts(home: Path) -> list[Part]:
        file = home / "litellm.yaml"
        file.write_text(peer_configs.litellm(engines))
        argv = [
            str(binary), "--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"
        ]  # fmt: skip
        env = {
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "*",
        }
        return [Part(name="litellm", argv=argv, env=env)]

    missing = "" if binary else "no litellm: `pip install 'litellm[proxy]'` into a venv, then set LITELLM_BIN"
    return Front(name="litellm", port=port, parts=parts, unavailable=missing, most_per_s=60)


def this_python() -> Path:
    return Path(sys.executable)
