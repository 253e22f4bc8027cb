"""Settings of the sidecar: flags, each with an environment variable AGENTSERVING_<FLAG>."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agentserving_process.options import REQUIRED, option
from agentserving_process.probes import ProbeOptions
from agentserving_process.tls import LeaderOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The engine"""

    engine_id: str = option(REQUIRED, "identifies the engine in the cluster")
    engine_address: str = option(REQUIRED, "host:port of the engine's HTTP front, for this process and for gateways")
    channel_dir: Path = option(REQUIRED, "directory that is shared with the engine, for the plugin's socket")
    # Scheduler steps take milliseconds. A longer limit follows from the measured cost of a token (health).
    stuck_s: float = option(5.0, "seconds after which a step without an end may count as a hang", above=0)
    drain_s: float = option(30.0, "seconds that calls may go on while the engine drains", least=0)
    engine_ca: Path | None = option(None, "PEM file of the CA of engines' certificates; none: engines speak http")
    engine_api_key_file: Path | None = option(None, "file with the engine's API key, if it wants one (vLLM --api-key)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarOptions:
    """The sidecar"""

    state_dir: Path = option(REQUIRED, "directory for the journal; it must outlast the process")
    listen: str = option("127.0.0.1:7071", "host:port of CallService.Generate, for clients of the gRPC API")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, by topic."""

    engine: EngineOptions
    sidecar: SidecarOptions
    probes: ProbeOptions
    leader: LeaderOptions
