"""The engines as Envoy reads them (EDS), in one file that also outlives this process.

An engine that is not READY stays in the file: calls of programs that it holds still go there by name, and only calls
that nothing names avoid it. A picker or an Envoy that starts while the control plane is away has the last engines here.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import structlog
from agentserving.contract.ids import EngineId
from agentserving.contract.names import engine_name
from agentserving_process.addresses import split_address

from agentserving_gateway.engines import Engine
from agentserving_gateway.envoy.clusters import ENGINES
from agentserving_gateway.envoy.extensions import Json, typed

log = structlog.get_logger()


class EnginesFile:
    """Written whole and renamed, so Envoy never reads half of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: Json | None = None
        self._addresses: frozenset[str] = frozenset()

    def load(self) -> list[Engine]:
        """The engines of the file; [] when there is none, or none that can be read. Creates an empty one."""
        try:
            engines = list(_parsed(json.loads(self._path.read_text())))
        except FileNotFoundError:
            engines = []
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.warning("cannot read the engines file", path=str(self._path), error=str(error))
            engines = []
        self.save(engines, even_empty=True)
        return engines

    def save(self, engines: Sequence[Engine], *, even_empty: bool = False) -> None:
        """Writes the set when it differs from the last one; an empty set does not replace it."""
        document = rendered(engines)
        if document == self._written or (not engines and not even_empty):
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Not in the watched directory: Envoy looks at each file that moves into it.
            scratch = self._path.parent.parent / f"{self._path.name}.{os.getpid()}"
            scratch.write_text(json.dumps(document))
            scratch.replace(self._path)
        except OSError as error:
            log.error("cannot write the engines file", path=str(self._path), error=str(error))
            return
        self._written = document
        self._addresses = frozenset(engine.address for engine in engines)

    def has(self, address: str) -> bool:
        """The file names the engine at this address."""
        return address in self._addresses


def rendered(engines: Iterable[Engine]) -> Json:
    """A DiscoveryResponse with the one ClusterLoadAssignment. Engines without an IP address are left out."""
    endpoints = [
        {
            "endpoint": {
                "address": {"socket_address": {"address": host, "port_value": port}},
                # Whose certificate is expected, with TLS.
                "hostname": engine_name(engine.engine_id),
            },
            "health_status": "HEALTHY" if engine.is_ready else "UNHEALTHY",
            "metadata": {
                "filter_metadata": {"agentserving": {"engine": engine.engine_id, "models": sorted(engine.models)}}
            },
        }
        for engine in engines
        if (where := _ip_and_port(engine.address)) is not None
        for host, port in [where]
    ]
    assignment = typed(
        "config.endpoint.v3.ClusterLoadAssignment", cluster_name=ENGINES, endpoints=[{"lb_endpoints": endpoints}]
    )
    return {"resources": [assignment]}


def _ip_and_port(address: str) -> tuple[str, int] | None:
    """None for an address that Envoy's EDS would refuse, together with all others."""
    try:
        host, port = split_address(address)
        ipaddress.ip_address(host)
    except ValueError as error:
        log.error("an engine's address is not an IP address with a port", address=address, error=str(error))
        return None
    return host, port


def _parsed(document: Any) -> Iterable[Engine]:
    for endpoint in document["resources"][0]["endpoints"][0]["lb_endpoints"]:
        where = endpoint["endpoint"]["address"]["socket_address"]
        known = endpoint["metadata"]["filter_metadata"]["agentserving"]
        host = f"[{where['address']}]" if ":" in where["address"] else where["address"]
        yield Engine(
            EngineId(known["engine"]),
            f"{host}:{where['port_value']}",
            endpoint["health_status"] == "HEALTHY",
            frozenset(known["models"]),
        )
