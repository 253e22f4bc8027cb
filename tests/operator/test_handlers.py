"""kopf watches clusters: against a server that answers as scripted, an event touches its cluster, and that is all."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml
from agentserving_operator import handlers
from agentserving_operator.api_server import ApiServer
from agentserving_operator.errors import RefusedError
from agentserving_operator.handlers import ClusterEvents
from agentserving_operator.spec.crd import GROUP, KIND, PLURAL, TENANT_KIND, TENANT_PLURAL, VERSION
from agentserving_process.backoff import Backoff
from agentserving_process.supervision import Supervisor
from aiohttp import web
from aiohttp.test_utils import TestServer
from support.eventually import eventually_async


def cluster(name: str, version: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "resourceVersion": version}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": metadata, "spec": {}}


class ScriptedServer:
    """An API server with clusters: first those in `listed`, later those of `send`.

    Each status in `failures` fails one request for clusters.
    """

    def __init__(self) -> None:
        self.listed: list[dict[str, Any]] = []
        self.failures: list[int] = []
        self.requests: list[tuple[str, str]] = []
        self.watches = 0
        # Kinds that kopf finds, by plural.
        self.kinds = {PLURAL: KIND}
        self._changes: list[asyncio.Queue[dict[str, Any]]] = []

    def send(self, change: str, found: dict[str, Any]) -> None:
        """Sends a change to all open watches."""
        for queue in self._changes:
            queue.put_nowait({"type": change, "object": found})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        namespaces = {"name": "namespaces", "singularName": "namespace", "kind": "Namespace", "namespaced": False}
        kinds = [
            {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": True}
            for plural, kind in self.kinds.items()
        ]
        verbs = {"verbs": ["list", "watch", "patch"]}
        version = {"groupVersion": f"{GROUP}/{VERSION}", "version": VERSION}
        discovery: dict[str, Any] = {
            "/api": {"versions": ["v1"]},
            "/api/v1": {"resources": [namespaces | verbs]},
            "/apis": {"groups": [{"name": GROUP, "versions": [version], "preferredVersion": version}]},
            f"/apis/{GROUP}/{VERSION}": {"resources": [kind | verbs for kind in kinds]},
        }
        if request.path in discovery:
            return web.json_response(discovery[request.path])
        if self.failures:
            status = self.failures.pop(0)
            return web.json_response({"kind": "Status", "code": status, "message": "scripted"}, status=status)
        if "watch" in request.query:
            return await self._watch(request)
        return web.json_response({"metadata": {"resourceVersion": "100"}, "items": self.listed})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._changes.append(queue)
        self.watches += 1
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(json.dumps(await queue.get()).encode() + b"\n")
        finally:
            self._changes.remove(queue)


class Touched:
    """Touched clusters, and the threads in which they were touched."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.threads: set[threading.Thread] = set()

    def __call__(self, namespace: str, name: str) -> None:
        self.names.append(f"{namespace}/{name}")
        self.threads.add(threading.current_thread())


@asynccontextmanager
async def given(
    server: ScriptedServer, directory: Path, touched: Touched, namespaces: tuple[str, ...] = ()
) -> AsyncIterator[ClusterEvents]:
    """Events of the scripted server's clusters; not running yet."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    # kopf has closed its connections when it has ended.
    async with TestServer(app) as listening:
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://{listening.host}:{listening.port}"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }  # fmt: skip
        path = directory / "kubeconfig"
        path.write_text(yaml.safe_dump(document))
        async with await ApiServer.connect(str(path)) as api:
            yield ClusterEvents(api, touched, namespaces=namespaces, kubeconfig=str(path), identity="me")


@asynccontextmanager
async def running(events: ClusterEvents) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(events.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def kubeconfig_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is restored after the test; the flag takes precedence over it."""
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")


@pytest.mark.parametrize("namespaces", [(), ("ns",)], ids=["all namespaces", "one namespace"])
async def test_listed_and_changed_clusters_are_touched_and_nothing_is_written(
    namespaces: tuple[str, ...], tmp_path: Path
) -> None:
    server, touched = ScriptedServer(), Touched()
    server.listed = [cluster("one", "1")]
    async with given(server, tmp_path, touched, namespaces) as events, running(events):
        await eventually_async(lambda: touched.names == ["ns/one"] and server.watches)
        server.send("ADDED", cluster("two", "101"))
        await eventually_async(lambda: touched.names == ["ns/one", "ns/two"])
        server.send("DELETED", cluster("one", "102"))
        await eventually_async(lambda: touched.names == ["ns/one", "ns/two", "ns/one"])
    # No finalizer, no annotation, no Event; and `touch` needs no locks.
    assert {verb for verb, _ in server.requests} == {"GET"}
    assert touched.threads == {threading.current_thread()}
    paths = {path for _, path in server.requests if path.endswith(PLURAL)}
    scope = "/namespaces/ns" if namespaces else ""
    assert paths == {f"/apis/{GROUP}/{VERSION}{scope}/{PLURAL}"}


async def test_a_login_that_fails_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server, touched = ScriptedServer(), Touched()
    server.listed = [cluster("one", "1")]
    async with given(server, tmp_path, touched) as events:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.rename(tmp_path / "elsewhere")
        async with running(events):
            await eventually_async(lambda: "NoCredentialsError" in caplog.text)
            assert touched.names == []
            (tmp_path / "elsewhere").rename(kubeconfig)
            await eventually_async(lambda: touched.names == ["ns/one"])


async def test_a_tenant_touches_the_cluster_that_it_names(tmp_path: Path) -> None:
    server, touched = ScriptedServer(), Touched()
    server.kinds = {TENANT_PLURAL: TENANT_KIND}
    async with given(server, tmp_path, touched) as events, running(events):
        await eventually_async(lambda: server.watches == 1)
        tenant = cluster("research", "101") | {"kind": TENANT_KIND, "spec": {"clusterName": "demo"}}
        server.send("ADDED", tenant)
        await eventually_async(lambda: touched.names == ["ns/demo"])
        server.send("DELETED", tenant)
        await eventually_async(lambda: touched.names == ["ns/demo", "ns/demo"])


async def test_an_expired_watch_lists_again(tmp_path: Path) -> None:
    server, touched = ScriptedServer(), Touched()
    async with given(server, tmp_path, touched) as events, running(events):
        await eventually_async(lambda: server.watches == 1)
        server.listed = [cluster("missed", "150")]
        server.send("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})
        await eventually_async(lambda: touched.names == ["ns/missed"])


@pytest.mark.parametrize("code", [403, 404, 500])
async def test_an_error_that_ends_kopf_is_raised_and_its_restart_lists_again(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "ERROR_BACKOFFS_S", (0.01,))
    server, touched = ScriptedServer(), Touched()
    async with given(server, tmp_path, touched) as events, Supervisor() as supervisor:
        with structlog.testing.capture_logs() as logged:
            supervisor.start("kopf", events.run, restart=Backoff(first_s=0.01, max_s=0.01))
            await eventually_async(lambda: server.watches == 1)
            server.listed, server.failures = [cluster("missed", "150")], [code] * 3
            server.send("ERROR", {"kind": "Status", "code": 500, "message": "scripted"})
            await eventually_async(lambda: touched.names == ["ns/missed"])
        assert "task failed, restarting it" in [each["event"] for each in logged]


async def test_it_does_not_start_before_the_kind_exists(tmp_path: Path) -> None:
    """kopf would ignore the kind for as long as it runs."""
    server = ScriptedServer()
    server.failures = [404]
    async with given(server, tmp_path, Touched()) as events:
        with pytest.raises(RefusedError, match="scripted"):
            await events.run()
    assert [path for _, path in server.requests] == [f"/apis/{GROUP}/{VERSION}/{PLURAL}"]


async def test_its_end_leaves_other_tasks_and_signals_alone(tmp_path: Path) -> None:
    server, received = ScriptedServer(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, received.set)
    try:
        async with given(server, tmp_path, Touched()) as events:
            async with running(events):
                await eventually_async(lambda: server.watches == 1)
                other = asyncio.create_task(asyncio.Event().wait())
                signal.raise_signal(signal.SIGTERM)
                await asyncio.wait_for(received.wait(), 30)
            assert not other.done()
            other.cancel()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
