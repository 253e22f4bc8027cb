"""Settings of the sidecar: flags, each with an environment variable AGENTSERVING_<FLAG>."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentserving.contract.signatures import VerifyingKey
from agentserving.contract.ticket import IssuerKeys, verify
from agentserving.contract.ticket_keys import TicketKeys, verifying_keys
from agentserving_process.engine_tls import check_engine_files
from agentserving_process.options import REQUIRED, option
from agentserving_process.probes import ProbeOptions
from agentserving_process.tls import LeaderOptions

TicketCheck = Callable[[str], None]


def read_ticket_keys(path: str) -> TicketKeys[VerifyingKey]:
    """The public keys in a file. ValueError names the file and what is wrong with it."""
    try:
        return verifying_keys(Path(path))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check(text: str, keys: Sequence[VerifyingKey], engine_id: str) -> None:
    verify(text, IssuerKeys(keys), engine_id=engine_id, now_unix_s=time.time())


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
    engine_cert: Path | None = option(None, "PEM file of this process's certificate, for an engine that asks for one")
    engine_key: Path | None = option(None, "PEM file of its private key")
    engine_api_key_file: Path | None = option(None, "file with the engine's API key, if it wants one (vLLM --api-key)")

    def __post_init__(self) -> None:
        check_engine_files(self.engine_ca, self.engine_cert, self.engine_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarOptions:
    """The sidecar"""

    state_dir: Path = option(REQUIRED, "directory for the journal; it must outlast the process")
    listen: str = option("127.0.0.1:7071", "host:port of CallService.Generate, for clients of the gRPC API")
    ticket_keys: TicketKeys[VerifyingKey] | None = option(
        None, "file of the public key of tickets: Generate passes on what has a ticket for this engine; none: the"
        " engine alone decides", name="ticket_key_file", read=read_ticket_keys,
    )  # fmt: skip

    def ticket_check(self, engine_id: str) -> TicketCheck:
        """Raises InvalidTicketError for a call that may not be passed on."""
        keys = self.ticket_keys
        if keys is None:
            return lambda text: None
        return lambda text: _check(text, keys(), engine_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, by topic."""

    engine: EngineOptions
    sidecar: SidecarOptions
    probes: ProbeOptions
    leader: LeaderOptions
