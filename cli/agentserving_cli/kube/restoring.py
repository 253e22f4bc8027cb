"""Pods that restore a cluster's own etcd from a snapshot, one for each member. Pure.

Everything that must fit the members is read from their StatefulSet: names, addresses, token, volumes. The revision is
always moved on, because epochs are revisions and none may come twice; an etcdutl that cannot do so (before 3.6) fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from agentserving_cli.kube.clusters import Object

# Eleven days of a thousand commits a second: more than is written between a backup and the loss.
BUMP_REVISIONS = 1_000_000_000
SNAPSHOT = "/backup/table.db"
# etcdutl resolves the members' names and compares the addresses. While etcd is scaled to 0 the names have none; nothing
# is reached at these, which are for documentation (RFC 5737).
_NO_ADDRESS = "192.0.2.{}"
# Of the containers: `kubectl cp -c` names the first.
RECEIVE, RESTORE = "receive", "restore"
_SHARED = ("securityContext", "imagePullSecrets", "nodeSelector", "tolerations", "affinity", "serviceAccountName")


def restore_pods(etcd: Object, control_plane: Object) -> list[Object]:
    """From the live StatefulSet of etcd and the Deployment of the control plane, which has our own image."""
    template = etcd["spec"]["template"]["spec"]
    (container,) = (each for each in template["containers"] if each["name"] == "etcd")
    (ours,) = (
        each for each in control_plane["spec"]["template"]["spec"]["containers"] if each["name"] == "control-plane"
    )
    flags = dict(_flags(template))
    return [_pod(etcd, member, flags, container, ours["image"]) for member in range(_members(flags))]


def _members(flags: dict[str, str]) -> int:
    return len(flags["initial-cluster"].split(","))


def _flags(template: Object) -> Iterator[tuple[str, str]]:
    """etcd's flags, which the container has, or its init container if that writes them into a file."""
    for each in (*template.get("initContainers", ()), *template["containers"]):
        for word in (*each.get("command", ()), *each.get("args", ())):
            name, equals, value = str(word).removeprefix("--").partition("=")
            if equals:
                yield name, value


def _pod(etcd: Object, member: int, flags: dict[str, str], container: Object, image: str) -> Object:
    metadata, template = etcd["metadata"], etcd["spec"]["template"]["spec"]
    name = f"{metadata['name']}-{member}"
    own = {key: value.replace("$(POD_NAME)", name) for key, value in flags.items()}
    (mounted,) = (each["mountPath"] for each in container["volumeMounts"] if each["name"] == "data")
    shared = {
        "imagePullPolicy": container["imagePullPolicy"],
        "resources": container["resources"],
        "securityContext": container["securityContext"],
        "volumeMounts": [{"name": "data", "mountPath": mounted}, {"name": "backup", "mountPath": "/backup"}],
    }
    receive = ["python", "-m", "agentserving_operator.received_snapshot", SNAPSHOT, own["data-dir"]]
    restore = ["etcdutl", "snapshot", "restore", SNAPSHOT, *_restore_flags(own)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{metadata['name']}-{RESTORE}-{member}", "namespace": metadata["namespace"]},
        "spec": {
            **{key: template[key] for key in _SHARED if key in template},
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "restartPolicy": "Never",
            "hostAliases": _aliases(flags),
            "initContainers": [{"name": RECEIVE, "image": image, "command": receive, **shared}],
            "containers": [{"name": RESTORE, "image": container["image"], "command": restore, **shared}],
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": f"data-{name}"}},
                {"name": "backup", "emptyDir": {}},
            ],
        },
    }


def _aliases(flags: dict[str, str]) -> list[Object]:
    urls = [each.partition("=")[2] for each in flags["initial-cluster"].split(",")]
    return [
        {"ip": _NO_ADDRESS.format(number), "hostnames": [urlsplit(url).hostname]} for number, url in enumerate(urls, 1)
    ]


def _restore_flags(own: dict[str, str]) -> list[str]:
    taken = ("name", "data-dir", "initial-cluster", "initial-cluster-token", "initial-advertise-peer-urls")
    moved = [f"--bump-revision={BUMP_REVISIONS}", "--mark-compacted"]
    return [*(f"--{each}={own[each]}" for each in taken), *moved]
