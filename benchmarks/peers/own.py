"""Our own processes, as one JSON document: ``python -m benchmarks.peers.own DIRECTORY FIRST_PORT ENGINE_PORT ENGINES``.

Runs with the Python of any checkout, so that two of them can be compared.
"""

from __future__ import annotations

import inspect
import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentserving_cli.local import commands
from agentserving_cli.local.cluster import find_etcd
from agentserving_cli.local.commands import Command
from agentserving_cli.local.layout import ClusterSpec, ControlPlaneAddress, EngineAddresses, Ports


def processes(home: Path, first: int, engine_port: int, engines: int) -> list[dict[str, object]]:
    """etcd, a control plane, a sidecar per engine, Envoy with its picker: `name`, `argv`, `env`, `ready_url`."""
    at = [
        EngineAddresses(str(i), engine_port + i, first + 10 + 2 * i, first + 11 + 2 * i)
        for i in range(engines)
    ]  # fmt: skip
    plane = ControlPlaneAddress("control-plane", first + 3, first + 4)
    ports = Ports(
        gateway=first, etcd_client=first + 1, etcd_peer=first + 2, gateway_http=first + 5,
        control_planes=(plane,), engines=tuple(at),
    )  # fmt: skip
    # The load has no key, as it has none for the other fronts.
    open_door: dict[str, Any] = {"auth": False} if "auth" in ClusterSpec.__dataclass_fields__ else {}
    spec = ClusterSpec(home, engine="simulator", engines=engines, **open_door)
    for name in ("ticket", "gateway"):
        (home / f"{name}.key").touch(mode=0o600)
        (home / f"{name}.key").write_bytes(secrets.token_bytes(32))
    known = {"spec": spec, "home": home, "run_dir": home / "front", "ports": ports}
    found = [
        _of_any_version(commands.etcd, binary=find_etcd(), **known),
        commands.control_plane(spec, home, ports, plane),
        *(
            _of_any_version(commands.sidecar, engine=each, channel=home.parent / "channel" / each.engine_id, **known)
            for each in at
        ),
        _of_any_version(commands.picker, **known),
        _of_any_version(commands.gateway, **known),
    ]
    return [
        {"name": each.name, "argv": list(each.argv), "env": dict(each.env), "ready_url": each.ready_url}
        for each in found
    ]


def _of_any_version(function: Callable[..., Command], **known: object) -> Command:
    """Older checkouts take fewer arguments."""
    return function(**{name: known[name] for name in inspect.signature(function).parameters})


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    print(json.dumps(processes(directory, *map(int, sys.argv[2:]))))
