"""How clients connect, for how long they wait, and when they try again. What sync and async share; sends nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from agentserving.errors import AgentServingError, InvalidArgumentError, UnavailableError

CONTROL_PLANE = "AGENTSERVING_CONTROL_PLANE"


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of PEM files. `ca` = whom to trust, None = the system's; `cert` and `key` = who we are, for mutual TLS."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """OSError for a file that cannot be read."""

        def content(path: Path | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        return grpc.ssl_channel_credentials(content(self.ca), content(self.key), content(self.cert))


def tls_from_environment() -> Tls | None:
    """AGENTSERVING_TLS_CA, _CERT and _KEY, as the components have them; None when none is set."""
    paths = [os.environ.get(f"AGENTSERVING_TLS_{name}") for name in ("CA", "CERT", "KEY")]
    if not any(paths):
        return None
    ca, cert, key = (Path(path) if path else None for path in paths)
    return Tls(ca, cert, key)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a client behaves.

    tls: by default what the environment says; None = in the clear.
    deadline_s: of one operation with all its attempts; long enough for a write that waits for a slow store.
    attempts: 3 outlive a gateway or control plane that restarts in about a second.
    first_delay_s: before the second attempt, doubled for each further one, half of it random.
    metadata: sent with every RPC; the credential, and the tenant that comes with it.
    """

    tls: Tls | None = field(default_factory=tls_from_environment)
    deadline_s: float = 10.0
    attempts: int = 3
    first_delay_s: float = 0.2
    metadata: Mapping[str, str] = field(default_factory=dict)

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Metadata as gRPC takes it."""
        return tuple(self.metadata.items())


# The default first reconnect comes after a second: longer than a control plane needs to come back.
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 16 << 20),
)


def control_plane_address(given: str | None) -> str:
    """The address given, else the environment's; InvalidArgumentError when there is neither."""
    address = given or os.environ.get(CONTROL_PLANE, "")
    if not address:
        raise InvalidArgumentError(
            f"address: name the control plane as host:port, or set {CONTROL_PLANE}", field="address"
        )
    return address


Dial = tuple[Callable[..., Any], Callable[..., Any]]


def dial(ways: Dial, address: str, settings: Settings) -> Any:
    """A channel; `ways` are gRPC's plain and TLS constructors, sync or async."""
    plain, secure = ways
    if settings.tls is None:
        return plain(address, options=CHANNEL_OPTIONS)
    return secure(address, settings.tls.credentials(), options=CHANNEL_OPTIONS)


class Attempts:
    """The attempts of one operation, by a clock that the caller reads (seconds, monotonic)."""

    def __init__(self, settings: Settings, now_s: float, *, again: bool) -> None:
        self._settings, self._again = settings, again
        self._until_s = now_s + settings.deadline_s
        self._made = 0

    def left_s(self, now_s: float) -> float:
        """Deadline of the attempt that begins now."""
        return max(0.001, self._until_s - now_s)

    def delay_s(self, error: AgentServingError, now_s: float) -> float | None:
        """How long to wait before the next attempt; None = there is none: raise."""
        self._made += 1
        if not self._again or not isinstance(error, UnavailableError) or self._made >= self._settings.attempts:
            return None
        delay = self._settings.first_delay_s * 2 ** (self._made - 1) * random.uniform(0.5, 1.0)
        delay = max(delay, error.retry_after_s)
        return delay if now_s + delay < self._until_s else None
