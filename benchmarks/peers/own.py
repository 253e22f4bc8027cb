"""Our own processes, as one JSON document: ``python -m benchmarks.peers.own DIRECTORY FIRST_PORT ENGINE_PORT ENGINES``.

Runs with the Python of any checkout, so that two of them can be compared.
"""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path

from agentserving_cli.local import commands
from agentserving_cli.local.cluster import find_etcd
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
    spec = ClusterSpec(home, engine="simulator", engines=engines)
    (home / "ticket.key").touch(mode=0o600)
    (home / "ticket.key").write_bytes(secrets.token_bytes(32))
    run_dir = home / "front"
    found = [
        commands.etcd(find_etcd(), home, ports),
        commands.control_plane(spec, home, ports, plane),
        *(commands.sidecar(home, ports, each, home.parent / "channel" / each.engine_id) for each in at),
        commands.picker(run_dir, ports),
        commands.gateway(run_dir, ports),
    ]
    return [
        {"name": each.name, "argv": list(each.argv), "env": dict(each.env), "ready_url": each.ready_url}
        for each in found
    ]


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    print(json.dumps(processes(directory, *map(int, sys.argv[2:]))))
