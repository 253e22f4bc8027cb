"""The one door to the API server: the asyncio client inside the `kubernetes` package, by path, with plain objects.

Typed models are not used: they drop fields that they do not know, and server-side apply needs just the fields we set.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import quote

import aiohttp
from kubernetes.aio import client, config

from agentserving_operator import metrics
from agentserving_operator.manifests import Manifest
from agentserving_operator.manifests.common import MANAGER
from agentserving_operator.spec.crd import GROUP, KIND, PLURAL, VERSION

TIMEOUT_S = 15.0
# asyncio gives each TLS connection 256 KiB for as long as it is open; four visits at once opened 24, and kept them.
CONNECTIONS = 4
APPLY = "application/apply-patch+yaml"

# Where each kind lives.
PATHS = {
    KIND: (f"/apis/{GROUP}/{VERSION}", PLURAL),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "StatefulSet": ("/apis/apps/v1", "statefulsets"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "Service": ("/api/v1", "services"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "Secret": ("/api/v1", "secrets"),
    "Pod": ("/api/v1", "pods"),
    "Event": ("/apis/events.k8s.io/v1", "events"),
    "Certificate": ("/apis/cert-manager.io/v1", "certificates"),
}
# Kinds that a cluster is made of; Secrets are not listed, so that no right to is needed, nor are cert-manager's
# Certificates, whose kind there need not be.
CHILD_KINDS = ("ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "Service", "StatefulSet", "Deployment")


class ApiError(Exception):
    """Root. The API server's message is the exception's."""


class RefusedError(ApiError):
    """The API server said no; `status` is HTTP's, `reason` Kubernetes' word (Invalid, Forbidden, Conflict, ...)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class UnavailableError(ApiError):
    """No answer, or one that asks to come again: worth trying later."""


def path_of(kind: str, namespace: str, name: str = "", subresource: str = "") -> str:
    """URL path; an empty namespace is all of them."""
    prefix, plural = PATHS[kind]
    parts = [prefix, *(("namespaces", quote(namespace)) if namespace else ()), plural]
    parts += [quote(name)] if name else []
    parts += [subresource] if subresource else []
    return "/".join(parts)


def resource_of(kind: str) -> tuple[str, str, str]:
    """Group (empty for the core), version and plural."""
    prefix, plural = PATHS[kind]
    *_, group, version = ("", *prefix.removeprefix("/api/").removeprefix("/apis/").split("/"))
    return group, version, plural


class Cluster:
    """`async with Cluster.connect()`."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls, kubeconfig: str = "") -> Self:
        """With the pod's own account, else with a kubeconfig. ConfigException when there is neither."""
        configuration = client.Configuration()
        configuration.connection_pool_maxsize = CONNECTIONS
        if kubeconfig:
            await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        else:
            try:
                config.load_incluster_config(client_configuration=configuration)
            except config.ConfigException:
                await config.load_kube_config(client_configuration=configuration)
        return cls(client.ApiClient(configuration))

    @property
    def api_client(self) -> client.ApiClient:
        """The library's, for what it does by itself (`lease`)."""
        return self._api

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._api.close()

    # -- reading -------------------------------------------------------------------------------------------------

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """An object; None when there is none."""
        try:
            found: Manifest = await self._call("GET", path_of(kind, namespace, name))
        except RefusedError as error:
            if error.status == 404:
                return None
            raise
        return found

    async def find(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Manifest]:
        """Objects by labels; an empty namespace is all of them."""
        query = [("labelSelector", ",".join(f"{k}={v}" for k, v in labels.items()))] if labels else []
        found = await self._call("GET", path_of(kind, namespace), query)
        # Items of a list have no kind of their own.
        return [{**item, "kind": kind} for item in found.get("items", [])]

    async def children(self, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Of all kinds that a cluster is made of."""
        lists = await asyncio.gather(*(self.find(kind, namespace, labels) for kind in CHILD_KINDS))
        return [each for found in lists for each in found]

    # -- writing -------------------------------------------------------------------------------------------------

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply under our one field manager; what it has from others by mistake is taken back."""
        where = manifest["metadata"]
        path = path_of(manifest["kind"], where["namespace"], where["name"])
        query = [("fieldManager", MANAGER), ("force", "true")]
        applied: Manifest = await self._call("PATCH", path, query, manifest, APPLY)
        return applied

    async def create(self, manifest: Manifest) -> Manifest | None:
        """A new object; None when one of that name is there."""
        path = path_of(manifest["kind"], manifest["metadata"]["namespace"])
        try:
            created: Manifest = await self._call("POST", path, [("fieldManager", MANAGER)], manifest)
        except RefusedError as error:
            if error.reason == "AlreadyExists":
                return None
            raise
        return created

    async def delete(self, live: Manifest) -> None:
        """This very object, not one that has taken its name since."""
        where = live["metadata"]
        options = {"preconditions": {"uid": where["uid"]}, "propagationPolicy": "Background"}
        try:
            await self._call("DELETE", path_of(live["kind"], where["namespace"], where["name"]), (), options)
        except RefusedError as error:
            if error.status not in (404, 409):
                raise

    async def apply_status(self, manifest: Manifest) -> None:
        """The status of a custom resource, whole."""
        where = manifest["metadata"]
        path = path_of(manifest["kind"], where["namespace"], where["name"], "status")
        await self._call("PATCH", path, [("fieldManager", MANAGER), ("force", "true")], manifest, APPLY)

    # -- the wire ------------------------------------------------------------------------------------------------

    async def _call(
        self, verb: str, path: str, query: Sequence[tuple[str, str]] = (), body: object = None,
        content: str = "application/json",
    ) -> Any:  # fmt: skip
        headers = {"Accept": "application/json", "Content-Type": content}
        method, url, sent, payload, _ = await self._api.param_serialize(
            verb, path, query_params=list(query), header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        metrics.API_CALLS.labels(verb=verb).inc()
        try:
            response = await self._api.call_api(
                method, url, sent, payload, _request_timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
            )
            data = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(f"{verb} {path}: {error or type(error).__name__}") from error
        if response.status >= 400:
            raise _refusal(response.status, data, f"{verb} {path}")
        return json.loads(data)


def _refusal(status: int, data: bytes, asked: str) -> ApiError:
    try:
        told = json.loads(data)
        reason, message = str(told.get("reason", "")), str(told["message"])
    except (ValueError, KeyError, AttributeError):
        reason, message = "", data[:500].decode(errors="replace")
    if status in (429, 500, 502, 503, 504):
        return UnavailableError(f"{asked}: {message}")
    return RefusedError(status, reason, message)
