"""Whether a live object is as desired: every field that we set is there and equal. Pure.

Lists are compared as server-side apply merges them: an entry of ours is looked up by its key, and entries that others
added (an admission webhook's variable, a mesh's sidecar, a person's port) are left alone. Lists that have no key in
Kubernetes' schema (a command, the rules of a NetworkPolicy) are ours as a whole and must be equal.

A field or entry that we stopped setting does not show here; the hash in the annotation reveals it (`manifests`). What
webhooks do to our own fields cannot be distinguished from drift by looking: `settled` remembers it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from agentserving_operator.quantity import parse_quantity

# Keys of an entry, and what the API server fills in for a key that was left out.
_Keys = Mapping[str, Any]
_NAME: _Keys = {"name": None}
_CONTAINER: Mapping[str, _Keys] = {
    "env": _NAME,
    "ports": {"containerPort": None, "protocol": "TCP"},
    "volumeMounts": {"mountPath": None},
    "volumeDevices": {"devicePath": None},
}
# The lists of Kubernetes' schema with x-kubernetes-list-type map that our objects have, by the names of the field and
# of the one around it (entries of a list have that list's name).
_KEYED: dict[tuple[str, str], _Keys] = {
    ("metadata", "ownerReferences"): {"uid": None},
    ("spec", "containers"): _NAME,
    ("spec", "initContainers"): _NAME,
    ("spec", "volumes"): _NAME,
    ("spec", "imagePullSecrets"): _NAME,
    ("spec", "topologySpreadConstraints"): {"topologyKey": None, "whenUnsatisfiable": None},
    # Atomic in the schema. Webhooks append to it, and a toleration more only adds nodes.
    ("spec", "tolerations"): {"key": None, "operator": "Equal", "value": None, "effect": None},
    # Of a Service; the ports of a NetworkPolicy have another parent.
    ("spec", "ports"): {"port": None, "protocol": "TCP"},
    **{(of, field): keys for of in ("containers", "initContainers") for field, keys in _CONTAINER.items()},
}
# Fields whose members are quantities, and fields that are one.
_QUANTITY_MAPS = ("requests", "limits")
_QUANTITIES = ("sizeLimit",)


def matches(desired: Any, live: Any) -> bool:
    """True when applying `desired` would change nothing that we own."""
    return _matches(desired, live, "", "")


def _matches(desired: Any, live: Any, parent: str, field: str) -> bool:
    """`field` is the name under which both were found, `parent` the name around it."""
    if isinstance(desired, Mapping):
        if not isinstance(live, Mapping):
            return not desired and live is None
        return all(_matches(value, live.get(key), field, key) for key, value in desired.items())
    if _is_list(desired):
        if not _is_list(live):
            return not desired and live is None
        keys = _KEYED.get((parent, field))
        if keys is not None:
            return all(_has_entry(each, live, keys, field) for each in desired)
        return len(desired) == len(live) and all(
            _matches(ours, theirs, parent, field) for ours, theirs in zip(desired, live, strict=True)
        )
    if live is None:
        # The API server leaves out what is empty.
        return not desired
    if isinstance(desired, bool) == isinstance(live, bool) and desired == live:
        return True
    return (parent in _QUANTITY_MAPS or field in _QUANTITIES) and _same_quantity(desired, live)


def _has_entry(desired: Mapping[str, Any], live: Sequence[Any], keys: _Keys, field: str) -> bool:
    """Whether the live entries of this key are as desired; there is one, or the list was never valid."""
    key = _key(desired, keys)
    same_key = [each for each in live if isinstance(each, Mapping) and _key(each, keys) == key]
    return bool(same_key) and all(_matches(desired, each, "", field) for each in same_key)


def _key(entry: Mapping[str, Any], keys: _Keys) -> tuple[Any, ...]:
    return tuple(default if entry.get(name) is None else entry[name] for name, default in keys.items())


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _same_quantity(desired: Any, live: Any) -> bool:
    """Whether two spellings mean one amount: the API server stores 1000m as 1."""
    amounts: list[Decimal] = []
    for each in (desired, live):
        try:
            amounts.append(parse_quantity(each))
        except ValueError:
            return False
    return amounts[0] == amounts[1]
