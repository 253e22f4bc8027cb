"""The only module that talks to the Kubernetes API server: plain dictionaries, by path, over aiohttp.

A client library with typed models is not used: models drop fields they do not know, and server-side apply must send
exactly the fields that we set. Its import would also be a fifth of the operator's memory.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self
from urllib.parse import quote

import agentserving
import aiohttp
from agentserving_process.audit import Refusals, changed

from agentserving_operator import metrics
from agentserving_operator.credentials import Credentials, login
from agentserving_operator.errors import ApiError, ConflictError, RefusedError, UnavailableError, WatchExpiredError
from agentserving_operator.manifests.common import MANAGER, Manifest
from agentserving_operator.spec.crd import GROUP, KIND, PLURAL, TENANT_KIND, TENANT_PLURAL, VERSION

REQUEST_TIMEOUT_S = 15.0
# asyncio buffers 256 KiB per open TLS connection, and four parallel visits would open 24 of them. Watches have a pool
# of their own, because each of them occupies a connection for as long as it runs.
REQUEST_CONNECTIONS = 4
WATCH_CONNECTIONS = 1024
# The API server ends a watch after this time and we open the next one. A connection that the network dropped silently
# is therefore noticed after WATCH_READ_TIMEOUT_S at the latest.
WATCH_S, WATCH_READ_TIMEOUT_S, CONNECT_TIMEOUT_S = 300, 330.0, 10.0
# Objects per response of a list, so that its size does not depend on how many there are.
PAGE = 500
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
JSON = "application/json"
# Objects without spec and status: watches need to know only whose object changed.
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
METADATA_OBJECT = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

# Path prefix and plural of each kind.
PATHS = {
    KIND: (f"/apis/{GROUP}/{VERSION}", PLURAL),
    TENANT_KIND: (f"/apis/{GROUP}/{VERSION}", TENANT_PLURAL),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "StatefulSet": ("/apis/apps/v1", "statefulsets"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "Ingress": ("/apis/networking.k8s.io/v1", "ingresses"),
    "HTTPRoute": ("/apis/gateway.networking.k8s.io/v1", "httproutes"),
    "Service": ("/api/v1", "services"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "Secret": ("/api/v1", "secrets"),
    "Pod": ("/api/v1", "pods"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
    "Event": ("/apis/events.k8s.io/v1", "events"),
    "Certificate": ("/apis/cert-manager.io/v1", "certificates"),
    "LeaderWorkerSet": ("/apis/leaderworkerset.x-k8s.io/v1", "leaderworkersets"),
    "InferencePool": ("/apis/inference.networking.k8s.io/v1", "inferencepools"),
}
# The kinds of a cluster's objects that visits list and watches follow. Secrets are read by name only, so the operator
# needs no right to list them. Certificates, InferencePools, HTTPRoutes and
# LeaderWorkerSets are left out: those kinds may not exist.
CHILD_KINDS = (
    "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "Service", "StatefulSet", "Deployment", "Ingress",
)  # fmt: skip


def path_of(kind: str, namespace: str, name: str = "", subresource: str = "") -> str:
    """URL path of an object or a collection. An empty namespace means all namespaces."""
    prefix, plural = PATHS[kind]
    parts = [prefix, *(("namespaces", quote(namespace)) if namespace else ()), plural]
    parts += [quote(name)] if name else []
    parts += [subresource] if subresource else []
    return "/".join(parts)


class ApiServer:
    """A client of one API server: `async with await ApiServer.connect() as api`."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials, self._server = credentials, credentials.info.server.rstrip("/")
        context = credentials.info.as_ssl_context()
        self._requests = _session(credentials.info.proxy_url, context, REQUEST_CONNECTIONS)
        self._watches = _session(credentials.info.proxy_url, context, WATCH_CONNECTIONS)
        self._refusals = Refusals(time.monotonic())

    @classmethod
    async def connect(cls, kubeconfig: str = "") -> Self:
        """Uses what `login` finds. Raises NoCredentialsError."""
        return cls(Credentials(lambda: login(kubeconfig)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._watches.close()
        await self._requests.close()

    # -- reading -------------------------------------------------------------------------------------------------

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """An object; None when it does not exist."""
        try:
            live: Manifest = await self._call("GET", path_of(kind, namespace, name))
        except RefusedError as error:
            if error.status == 404:
                return None
            raise
        return live

    async def find(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Manifest]:
        """Objects with these labels. An empty namespace means all namespaces."""
        response = await self._call("GET", path_of(kind, namespace), _selector(labels))
        # Items of a list come without a kind.
        return [{**item, "kind": kind} for item in response.get("items") or []]

    async def children(self, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Objects of all CHILD_KINDS with these labels."""
        lists = await asyncio.gather(*(self.find(kind, namespace, labels) for kind in CHILD_KINDS))
        return [each for items in lists for each in items]

    async def warnings(self, namespace: str) -> list[Manifest]:
        """Events of type Warning; the first PAGE of them where there are more."""
        query = [("fieldSelector", "type=Warning"), ("limit", str(PAGE))]
        response = await self._call("GET", path_of("Event", namespace), query)
        return [{**item, "kind": "Event"} for item in response.get("items") or []]

    async def metadata(
        self, kind: str, namespace: str, labels: Mapping[str, str] | None = None
    ) -> tuple[list[Manifest], str]:
        """Metadata of the objects with these labels, and the resource version from which `watch` continues."""
        query, items = [*_selector(labels), ("limit", str(PAGE))], list[Manifest]()
        token = ""
        while True:
            page = [*query, ("continue", token)] if token else query
            response = await self._call("GET", path_of(kind, namespace), page, accept=f"{METADATA_LIST},{JSON}")
            # An empty list of metadata comes as null.
            items += [item["metadata"] for item in response.get("items") or []]
            token = response["metadata"].get("continue", "")
            if not token:
                return items, str(response["metadata"]["resourceVersion"])

    async def watch(
        self, kind: str, namespace: str, since: str, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[tuple[str, Manifest]]:
        """(ADDED, MODIFIED, DELETED or BOOKMARK, metadata) of every change after resource version `since`.

        Ends when the API server ends it, after WATCH_S. Raises WatchExpiredError when `since` is too old.
        """
        query = [
            *_selector(labels), ("watch", "true"), ("allowWatchBookmarks", "true"),
            ("resourceVersion", since), ("timeoutSeconds", str(WATCH_S)),
        ]  # fmt: skip
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=WATCH_READ_TIMEOUT_S)
        path = path_of(kind, namespace)
        async with self._response(
            self._watches, "GET", path, query, limits=limits, accept=f"{METADATA_OBJECT},{JSON}"
        ) as response:
            async for line in _lines(response, f"watch {path}"):
                event = _decoded(line, f"watch {path}")
                if event["type"] == "ERROR":
                    raise _watch_error(event["object"], f"watch {path}")
                yield event["type"], event["object"]["metadata"]

    # -- writing -------------------------------------------------------------------------------------------------

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply under our field manager. Takes over our fields from any other manager."""
        metadata = manifest["metadata"]
        path = path_of(manifest["kind"], metadata["namespace"], metadata["name"])
        query = [("fieldManager", MANAGER), ("force", "true")]
        with self._audited("apply", manifest):
            applied: Manifest = await self._call("PATCH", path, query, manifest, APPLY)
        return applied

    async def create(self, manifest: Manifest) -> Manifest | None:
        """Creates an object; None when one of that name exists."""
        path = path_of(manifest["kind"], manifest["metadata"]["namespace"])
        try:
            with self._audited("create", manifest):
                created: Manifest = await self._call("POST", path, [("fieldManager", MANAGER)], manifest)
        except RefusedError as error:
            if error.reason == "AlreadyExists":
                return None
            raise
        return created

    async def replace(self, manifest: Manifest) -> Manifest:
        """Replaces an object. ConflictError when it was changed after the resourceVersion in its metadata."""
        metadata = manifest["metadata"]
        path = path_of(manifest["kind"], metadata["namespace"], metadata["name"])
        replaced: Manifest = await self._call("PUT", path, [("fieldManager", MANAGER)], manifest)
        return replaced

    async def delete(self, live: Manifest) -> None:
        """Deletes exactly this object (by uid), not a later one of the same name."""
        metadata = live["metadata"]
        options = {"preconditions": {"uid": metadata["uid"]}, "propagationPolicy": "Background"}
        try:
            with self._audited("delete", live):
                await self._call("DELETE", path_of(live["kind"], metadata["namespace"], metadata["name"]), (), options)
        except RefusedError as error:
            if error.status not in (404, 409):
                raise

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Replaces the status of a custom resource. A resourceVersion in its metadata must be the newest one."""
        metadata = manifest["metadata"]
        path = path_of(manifest["kind"], metadata["namespace"], metadata["name"], "status")
        query = [("fieldManager", MANAGER), ("force", "true")]
        applied: Manifest = await self._call("PATCH", path, query, manifest, APPLY)
        return applied

    async def set_field_owners(self, live: Manifest, entries: Sequence[Manifest]) -> Manifest:
        """Replaces managedFields of a custom resource. ConflictError when the object is not the newest."""
        metadata = live["metadata"]
        # Not by the subresource `status`, which ignores them.
        path = path_of(live["kind"], metadata["namespace"], metadata["name"])
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "managedFields": list(entries)}}
        changed_object: Manifest = await self._call("PATCH", path, [("fieldManager", MANAGER)], patch, MERGE)
        return changed_object

    @contextmanager
    def _audited(self, verb: str, manifest: Manifest) -> Iterator[None]:
        """One line of the audit log for a change of an object, or for the API server's refusal. Events are none."""
        metadata = manifest["metadata"]
        name = metadata.get("name") or metadata.get("generateName", "")
        about = f"{manifest['kind']}/{metadata['namespace']}/{name}"
        said = {"role": "operator", "method": f"kubernetes.{verb}"}
        try:
            yield
        except RefusedError as error:
            self._refusals.refused(
                time.monotonic(), outcome=str(error.status), reason=error.reason, object=about, **said
            )
            raise
        if manifest["kind"] != "Event":
            changed(about=about, **said)

    # -- the wire ------------------------------------------------------------------------------------------------

    async def _call(
        self, verb: str, path: str, query: Sequence[tuple[str, str]] = (), body: object = None,
        content: str = JSON, accept: str = JSON,
    ) -> Any:  # fmt: skip
        limits = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        async with self._response(
            self._requests, verb, path, query, body, content, accept=accept, limits=limits
        ) as response:
            try:
                data = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise _unavailable(f"{verb} {path}", error) from error
            return _decoded(data, f"{verb} {path}")

    @asynccontextmanager
    async def _response(
        self, session: aiohttp.ClientSession, verb: str, path: str, query: Sequence[tuple[str, str]] = (),
        body: object = None, content: str = JSON, *, accept: str, limits: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:  # fmt: skip
        """A response whose status is below 400, its body unread. Raises ApiError."""
        headers = {"Accept": accept, "Content-Type": content, **self._credentials.headers()}
        data = None if body is None else json.dumps(body).encode()
        metrics.API_CALLS.labels(verb=verb).inc()
        try:
            response = await session.request(
                verb, self._server + path, params=list(query), data=data, headers=headers, timeout=limits
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unavailable(f"{verb} {path}", error) from error
        async with response:
            if response.status >= 400:
                raise await _error_response(response, f"{verb} {path}")
            yield response


def _session(proxy: str | None, context: ssl.SSLContext, connections: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, ssl=context), proxy=proxy,
        headers={"User-Agent": f"agentserving-operator/{agentserving.__version__}"},
    )  # fmt: skip


def _selector(labels: Mapping[str, str] | None) -> list[tuple[str, str]]:
    return [("labelSelector", ",".join(f"{key}={value}" for key, value in labels.items()))] if labels else []


async def _lines(response: aiohttp.ClientResponse, request: str) -> AsyncIterator[bytes]:
    """Lines of a body of any length, as they arrive; a last line that was cut off is dropped."""
    rest = b""
    try:
        async for chunk in response.content.iter_any():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _unavailable(request, error) from error


def _decoded(data: bytes, request: str) -> Any:
    """JSON. Anything else is not the API server's: a proxy between us may be ill, which is worth a retry."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise UnavailableError(f"{request}: the response is not JSON: {data[:200]!r}") from error


def _watch_error(status: Mapping[str, Any], request: str) -> ApiError:
    message = f"{request}: {status.get('message', '')}"
    if status.get("code") == 410:
        return WatchExpiredError(message)
    return UnavailableError(message)


def _unavailable(request: str, error: Exception) -> UnavailableError:
    return UnavailableError(f"{request}: {error or type(error).__name__}")


async def _error_response(response: aiohttp.ClientResponse, request: str) -> ApiError:
    """The error that a response with a status of 400 or more stands for."""
    try:
        data = await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return _unavailable(request, error)
    try:
        status = json.loads(data)
        reason, message = str(status.get("reason", "")), str(status["message"])
    except (ValueError, KeyError, AttributeError):
        # Not a Status: written by something in front of the API server, or by its router.
        reason, message = "", data[:500].decode(errors="replace")
    if response.status == 410:
        return WatchExpiredError(f"{request}: {message}")
    if response.status in (429, 500, 502, 503, 504):
        return UnavailableError(f"{request}: {message}")
    refused = ConflictError if reason == "Conflict" else RefusedError
    return refused(response.status, reason, message)
