"""The client of the API server: pages, watches and errors, against a server that answers as scripted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from agentserving_operator.api_server import ApiServer
from agentserving_operator.errors import ApiError, ConflictError, RefusedError, UnavailableError, WatchExpiredError
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def connected(handler: Handler, directory: Path) -> AsyncIterator[ApiServer]:
    """A client of a server that answers every request by `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://{server.host}:{server.port}"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }  # fmt: skip
        path = directory / "kubeconfig"
        path.write_text(yaml.safe_dump(document))
        async with await ApiServer.connect(str(path)) as api:
            yield api


async def test_a_list_is_read_page_by_page_with_a_selector(tmp_path: Path) -> None:
    asked: list[dict[str, str]] = []

    async def pages(request: web.Request) -> web.Response:
        asked.append(dict(request.query))
        if "continue" in request.query:
            # As the API server writes an empty list of metadata.
            return web.json_response({"metadata": {"resourceVersion": "7"}, "items": None})
        first = {"metadata": {"name": "a"}}
        return web.json_response({"metadata": {"resourceVersion": "7", "continue": "more"}, "items": [first]})

    async with connected(pages, tmp_path) as api:
        assert await api.metadata("Pod", "", {"a": "b", "c": "d"}) == ([{"name": "a"}], "7")
    assert [each["labelSelector"] for each in asked] == ["a=b,c=d"] * 2
    assert asked[1]["continue"] == "more"


async def changes(api: ApiServer) -> list[tuple[str, Any]]:
    return [each async for each in api.watch("Pod", "ns", "5")]


def stream(*parts: bytes) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.query["resourceVersion"] == "5"
        response = web.StreamResponse()
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    return handler


def event(kind: str, **metadata: Any) -> bytes:
    return json.dumps({"type": kind, "object": {"metadata": metadata}}).encode() + b"\n"


async def test_a_watch_gives_changes_however_the_network_cuts_them(tmp_path: Path) -> None:
    long = event("ADDED", name="a", note="x" * 300_000)
    whole = long + event("DELETED", name="b")
    parts = [whole[:10], whole[10:100_000], whole[100_000:], event("ADDED", name="cut off")[:20]]
    async with connected(stream(*parts), tmp_path) as api:
        found = await changes(api)
    assert [(kind, metadata["name"]) for kind, metadata in found] == [("ADDED", "a"), ("DELETED", "b")]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (json.dumps({"type": "ERROR", "object": {"code": 410, "message": "too old"}}), WatchExpiredError),
        (json.dumps({"type": "ERROR", "object": {"code": 500, "message": "etcd"}}), UnavailableError),
        ("<html>a proxy's page</html>", UnavailableError),
    ],
    ids=["expired", "internal error", "not JSON"],
)
async def test_a_watch_ends_with_the_error_that_it_is_sent(line: str, error: type[ApiError], tmp_path: Path) -> None:
    async with connected(stream(line.encode() + b"\n"), tmp_path) as api:
        with pytest.raises(error):
            await changes(api)


def status(code: int, body: str) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=code, text=body)

    return handler


REFUSAL = json.dumps({"kind": "Status", "reason": "Invalid", "message": "spec.replicas: no"})


@pytest.mark.parametrize(
    ("code", "body", "error"),
    [
        (422, REFUSAL, RefusedError), (403, REFUSAL, RefusedError), (429, REFUSAL, UnavailableError),
        (503, "", UnavailableError), (500, "[]", UnavailableError), (410, REFUSAL, WatchExpiredError),
        (200, "not JSON", UnavailableError),
    ],
)  # fmt: skip
async def test_errors_say_whether_trying_again_helps(
    code: int, body: str, error: type[ApiError], tmp_path: Path
) -> None:
    async with connected(status(code, body), tmp_path) as api:
        with pytest.raises(error) as caught:
            await api.find("Pod", "ns")
        if error is RefusedError:
            assert (str(caught.value), caught.value.reason) == ("spec.replicas: no", "Invalid")  # type: ignore[attr-defined]
        if code == 200:
            return
        with pytest.raises(error):
            await changes(api)


async def test_a_replacement_names_the_version_it_read_and_conflicts_with_a_later_one(tmp_path: Path) -> None:
    lease = {"kind": "Lease", "metadata": {"namespace": "ns", "name": "l", "resourceVersion": "7"}}

    async def one_version(request: web.Request) -> web.Response:
        assert (request.method, request.path) == ("PUT", "/apis/coordination.k8s.io/v1/namespaces/ns/leases/l")
        if await request.json() == lease:
            return web.json_response({"kind": "Lease", "metadata": {"resourceVersion": "8"}})
        return web.json_response({"kind": "Status", "reason": "Conflict", "message": "modified"}, status=409)

    async with connected(one_version, tmp_path) as api:
        assert (await api.replace(lease))["metadata"] == {"resourceVersion": "8"}
        with pytest.raises(ConflictError):
            await api.replace({**lease, "metadata": {**lease["metadata"], "resourceVersion": "6"}})


async def test_a_missing_object_is_none_and_a_connection_that_fails_is_worth_a_retry(tmp_path: Path) -> None:
    async with connected(status(404, "{}"), tmp_path) as api:
        assert await api.get("Pod", "ns", "a") is None

    async def cut(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with connected(cut, tmp_path) as api:
        with pytest.raises(UnavailableError):
            await api.find("Pod", "ns")
        with pytest.raises(UnavailableError):
            await changes(api)


async def test_each_change_is_one_audit_line_and_repeated_refusals_are_one(tmp_path: Path) -> None:
    async def only_secrets(request: web.Request) -> web.Response:
        if "secrets" in request.path or "events" in request.path:
            return web.json_response({"metadata": {"name": "s"}})
        return web.json_response({"reason": "Forbidden", "message": "no"}, status=403)

    def an(kind: str) -> dict[str, Any]:
        return {"kind": kind, "metadata": {"namespace": "ns", "name": "s", "uid": "u"}}

    async with connected(only_secrets, tmp_path) as api:
        with capture_logs() as logs:
            await api.apply(an("Secret"))
            await api.create(an("Secret"))
            await api.delete(an("Secret"))
            await api.create(an("Event"))
            for _ in range(5):
                with pytest.raises(RefusedError):
                    await api.apply(an("Deployment"))
    said = [(line["method"], line["object"], line["outcome"]) for line in logs if line["event"] == "audit"]
    assert said == [
        ("kubernetes.apply", "Secret/ns/s", "OK"), ("kubernetes.create", "Secret/ns/s", "OK"),
        ("kubernetes.delete", "Secret/ns/s", "OK"), ("kubernetes.apply", "Deployment/ns/s", "403"),
    ]  # fmt: skip
