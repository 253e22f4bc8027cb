"""Who has written which field of our objects (`metadata.managedFields`), in the version that every chart serves.

kubectl writes v1beta1, the most stable version that is served. The API server answers a server-side apply with 500 when
managedFields name a version that the CRD does not have (kubernetes/kubernetes#111937), so after a rollback to a chart
without v1beta1 no status could be written. Both versions have one schema: an entry means the same under either name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import structlog

from agentserving_operator.errors import ConflictError, RefusedError
from agentserving_operator.manifests import Manifest
from agentserving_operator.spec.crd import API_VERSION, BETA, GROUP

log = structlog.get_logger()


class Api(Protocol):
    """What is asked of the API server; raises as `reconcile.Api` does."""

    async def set_field_owners(self, live: Manifest, entries: Sequence[Manifest]) -> Manifest:
        """Replaces managedFields. ConflictError when the object is not the newest."""


async def in_stored_version(api: Api, live: Manifest) -> Manifest:
    """The object, with the stored version in all of its managedFields. Raises ConflictError."""
    metadata = live["metadata"]
    entries = renamed(metadata.get("managedFields", []))
    if entries is None:
        return live
    try:
        return await api.set_field_owners(live, entries)
    except ConflictError:
        raise
    except RefusedError as error:
        # Its spec may be from before a rule of the CRD. Only a rollback would miss what was refused.
        about = {"kind": live["kind"], "namespace": metadata["namespace"], "name": metadata["name"]}
        log.warning("v1beta1 stays in managedFields", **about, error=str(error))
        return live


def renamed(entries: Sequence[Manifest]) -> list[Manifest] | None:
    """The entries with the stored version in place of v1beta1; None when none of them names v1beta1.

    Entries that differed in their version alone become one, with the fields of both: the API server would read only one
    of them.
    """
    if all(each.get("apiVersion") != f"{GROUP}/{BETA}" for each in entries):
        return None
    found = dict[tuple[str, ...], Manifest]()
    for each in entries:
        entry = {**each, "apiVersion": API_VERSION}
        key = tuple(each.get(part, "") for part in ("manager", "operation", "subresource"))
        if (first := found.get(key)) is not None:
            entry["fieldsV1"] = _union(first.get("fieldsV1", {}), each.get("fieldsV1", {}))
            entry["time"] = max(first.get("time", ""), each.get("time", ""))
        found[key] = entry
    return list(found.values())


def _union(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """A set of fields is a tree of dictionaries."""
    return {key: _union(one.get(key, {}), two.get(key, {})) for key in one | two}
