"""Users' pod templates merged over ours. Pure.

The rules are those of a strategic merge patch (Kubernetes' API conventions): objects are merged member by member,
lists with a key entry by entry, other lists are replaced. What the cluster's parts rely on cannot be changed; `merged`
refuses it with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentserving_operator.manifests.common import Manifest
from agentserving_operator.spec.crd import GROUP
from agentserving_operator.spec.parsing import SpecError, plain
from agentserving_operator.spec.pod_template import PodTemplate

# Keys of entries, by the names of the list and of the object around it (patchMergeKey in Kubernetes' types).
_CONTAINER_LISTS = {"env": "name", "ports": "containerPort", "volumeMounts": "mountPath", "volumeDevices": "devicePath"}
_POD_LISTS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}
_TIMES = ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold", "successThreshold")
_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
# What may be said about a container of ours.
_OPEN = ("name", "env", "envFrom", "resources", "securityContext", "volumeMounts", "volumeDevices", *_PROBES)
_WHY = {
    "image": "fields of the spec and the operator's values choose images",
    "imagePullPolicy": "engine.imagePullPolicy sets it for all containers",
    "command": "fields of the spec make the command; engine.extraArgs adds arguments of the engine",
    "args": "fields of the spec make the arguments; engine.extraArgs adds arguments of the engine",
    "ports": "the cluster's other parts connect to these ports",
    "lifecycle": "the hooks drain calls before the process ends",
}


def merged(ours: Manifest, template: PodTemplate, path: str) -> Manifest:
    """`ours` with the user's template over it; `path` is the template's in the spec.

    SpecError when the template changes what the cluster's parts rely on.
    """
    given = dict(plain(template))
    _check_metadata(ours["metadata"], given.get("metadata", {}), f"{path}.metadata")
    spec = dict(given.get("spec", {}))
    _check_containers(ours["spec"], spec, f"{path}.spec")
    _check_names(ours["spec"].get("volumes", []), spec.get("volumes", []), f"{path}.spec.volumes", "name")
    if spec.get("hostNetwork") and "dnsPolicy" not in spec:
        # Otherwise the pod would not find the cluster's Services by name.
        spec["dnsPolicy"] = "ClusterFirstWithHostNet"
    return {
        "metadata": _merge(ours["metadata"], given.get("metadata", {}), {}),
        "spec": _merge(ours["spec"], spec, _POD_LISTS),
    }


def _merge(ours: Any, given: Any, keys: Mapping[str, str]) -> Any:
    if not isinstance(ours, Mapping) or not isinstance(given, Mapping):
        return given
    found = dict(ours)
    for name, value in given.items():
        key, mine = keys.get(name), found.get(name)
        if key is not None and isinstance(mine, list) and isinstance(value, list):
            found[name] = _merge_entries(mine, value, key)
        elif name in found:
            found[name] = _merge(mine, value, {})
        else:
            found[name] = value
    return found


def _merge_entries(ours: Sequence[Manifest], given: Sequence[Manifest], key: str) -> list[Manifest]:
    """Entries of ours in their order, then those that only the user has."""
    by_key = {each.get(key): each for each in given}
    found = [_merge(each, by_key.pop(each.get(key), {}), _CONTAINER_LISTS) for each in ours]
    return found + list(by_key.values())


def _check_metadata(ours: Manifest, given: Manifest, path: str) -> None:
    for field in ("labels", "annotations"):
        for name in given.get(field, {}):
            if name in ours.get(field, {}) or name.split("/")[0] == GROUP:
                raise SpecError(f"{path}.{field}[{name}]", "is the operator's: choose another name")


def _check_containers(ours: Manifest, given: Manifest, path: str) -> None:
    for field in ("containers", "initContainers"):
        own = {each["name"]: each for each in ours.get(field, [])}
        other = {
            each["name"] for name in ("containers", "initContainers") if name != field for each in ours.get(name, [])
        }
        for container in given.get(field, []):
            name = container["name"]
            here = f"{path}.{field}[{name}]"
            if name in own:
                _check_container(own[name], container, here)
            elif name in other:
                raise SpecError(here, "is one of agentserving's containers, in the other list: move it there")


def _check_container(ours: Manifest, given: Manifest, path: str) -> None:
    for field, value in given.items():
        if field not in _OPEN:
            why = _WHY.get(field, "it is not among the fields of agentserving's containers that are open")
            raise SpecError(f"{path}.{field}", f"cannot be changed: {why}")
        if field in _PROBES:
            _check_probe(ours, field, value, f"{path}.{field}")
    _check_names(ours.get("env", []), given.get("env", []), f"{path}.env", "name")
    _check_names(ours.get("volumeMounts", []), given.get("volumeMounts", []), f"{path}.volumeMounts", "mountPath")


def _check_probe(ours: Manifest, field: str, given: Any, path: str) -> None:
    if field not in ours:
        raise SpecError(path, "this container has no such probe, and gets none by a template")
    for name in given if isinstance(given, Mapping) else ():
        if name not in _TIMES:
            raise SpecError(f"{path}.{name}", f"only times may be changed: {', '.join(_TIMES)}")


def _check_names(ours: Sequence[Manifest], given: Any, path: str, key: str) -> None:
    """Entries of ours are not replaced: parts rely on them."""
    if not isinstance(given, list):
        raise SpecError(path, "must be a list")
    own = {each[key] for each in ours}
    for index, each in enumerate(given):
        if not isinstance(each, Mapping):
            raise SpecError(f"{path}[{index}]", "must be an object")
        if each.get(key) in own:
            raise SpecError(f"{path}[{each[key]}]", "is agentserving's own: choose another")
