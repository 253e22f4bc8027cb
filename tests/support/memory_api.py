"""An API server in memory, as far as `reconcile.Api` promises: objects by kind and name, versions that count changes.

e2e/cases tests that a real API server keeps the same promises.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from agentserving_operator.api_server import CHILD_KINDS
from agentserving_operator.errors import ConflictError, RefusedError, UnavailableError
from agentserving_operator.manifests import Manifest
from agentserving_operator.spec.crd import API_VERSION, KIND, TENANT_KIND

NOW = "2026-01-01T00:00:00Z"


def _merged(old: Any, new: Any) -> Any:
    """`old` with the fields of `new` replaced, recursively."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    return copy.deepcopy(new)


class MemoryApi:
    """From write number `fail_at` on every write fails, as after a crash. Writes to names in `refuse` are refused."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Manifest] = {}
        self.writes: list[str] = []
        self.fail_at: int | None = None
        self.refuse: dict[str, RefusedError] = {}
        self._version = 0

    def put_cluster(self, namespace: str, name: str, spec: dict[str, Any]) -> None:
        """What `kubectl apply` does: the generation grows if the spec changed."""
        old = self.objects.get((KIND, namespace, name), {"metadata": {"generation": 0, "uid": f"uid-{name}"}})
        generation = old["metadata"]["generation"] + (old.get("spec") != spec)
        metadata = {**old["metadata"], "name": name, "namespace": namespace, "generation": generation}
        self._store({**old, "apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec})

    def put_tenant(self, namespace: str, name: str, spec: dict[str, Any], created: str = NOW) -> None:
        """What `kubectl apply` does with an AgentServingTenant; the generation always grows."""
        old = self.objects.get((TENANT_KIND, namespace, name), {"metadata": {"generation": 0}})
        metadata = {
            "creationTimestamp": created, **old["metadata"], "name": name, "namespace": namespace,
            "generation": old["metadata"]["generation"] + 1,
        }  # fmt: skip
        self._store({**old, "apiVersion": API_VERSION, "kind": TENANT_KIND, "metadata": metadata, "spec": spec})

    def state(self) -> dict[tuple[str, str, str], Manifest]:
        """All objects except Events, without uids and versions."""
        found = copy.deepcopy({key: each for key, each in self.objects.items() if key[0] != "Event"})
        for each in found.values():
            each["metadata"].pop("resourceVersion")
            each["metadata"].pop("uid")
        return found

    def _store(self, manifest: Manifest) -> Manifest:
        where = manifest["metadata"]
        key = (manifest["kind"], where["namespace"], where["name"])
        old = self.objects.get(key)
        if old is None or {**old, "metadata": {**old["metadata"], "resourceVersion": ""}} != {
            **manifest, "metadata": {**where, "resourceVersion": ""},
        }:  # fmt: skip
            self._version += 1
            stored = copy.deepcopy(manifest)
            stored["metadata"] |= {
                "resourceVersion": str(self._version),
                "uid": where.get("uid", f"uid{self._version}"),
            }
            self.objects[key] = stored
        return copy.deepcopy(self.objects[key])

    def _write(self, verb: str, kind: str, name: str) -> None:
        if self.fail_at is not None and len(self.writes) >= self.fail_at:
            raise UnavailableError("crashed")
        self.writes.append(f"{verb} {kind} {name}")
        if name in self.refuse:
            raise self.refuse[name]

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        return copy.deepcopy(self.objects.get((kind, namespace, name)))

    async def find(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Manifest]:
        return [
            copy.deepcopy(each)
            for (its_kind, its_namespace, _), each in self.objects.items()
            if its_kind == kind
            and namespace in ("", its_namespace)
            and (labels or {}).items() <= each["metadata"].get("labels", {}).items()
        ]

    async def warnings(self, namespace: str) -> list[Manifest]:
        return [each for each in await self.find("Event", namespace) if each.get("type") == "Warning"]

    async def children(self, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        return [each for kind in CHILD_KINDS for each in await self.find(kind, namespace, labels)]

    async def apply(self, manifest: Manifest) -> Manifest:
        where = manifest["metadata"]
        self._write("apply", manifest["kind"], where["name"])
        old = self.objects.get((manifest["kind"], where["namespace"], where["name"]), {})
        return self._store(_merged(old, manifest))

    async def create(self, manifest: Manifest) -> Manifest | None:
        where = manifest["metadata"]
        self._write("create", manifest["kind"], where["name"])
        if (manifest["kind"], where["namespace"], where["name"]) in self.objects:
            return None
        return self._store(manifest)

    async def delete(self, live: Manifest) -> None:
        where = live["metadata"]
        self._write("delete", live["kind"], where["name"])
        self.objects.pop((live["kind"], where["namespace"], where["name"]), None)

    async def apply_status(self, manifest: Manifest) -> Manifest:
        where = manifest["metadata"]
        self._write("status", manifest["kind"], where["name"])
        old = self.objects[manifest["kind"], where["namespace"], where["name"]]
        newest = old["metadata"]["resourceVersion"]
        if where.get("resourceVersion", newest) != newest:
            raise ConflictError(409, "Conflict", "the object has been modified")
        return self._store({**old, "status": copy.deepcopy(manifest["status"])})

    async def set_field_owners(self, live: Manifest, entries: Sequence[Manifest]) -> Manifest:
        where = live["metadata"]
        self._write("owners", live["kind"], where["name"])
        old = self.objects[live["kind"], where["namespace"], where["name"]]
        if where["resourceVersion"] != old["metadata"]["resourceVersion"]:
            raise ConflictError(409, "Conflict", "the object has been modified")
        return self._store({**old, "metadata": {**old["metadata"], "managedFields": list(entries)}})
