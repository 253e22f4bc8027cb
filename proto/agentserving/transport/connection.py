"""Settings of a client, and its retries: how it connects, how long it waits, when it tries again. Does no I/O but
reading certificates; the blocking and the asyncio client share it. channels.py opens the connections.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc

from agentserving.contract import key_text
from agentserving.contract.replaced_files import settled
from agentserving.transport.errors import (
    NOT_LEADER,
    AgentServingError,
    CancelledError,
    InvalidArgumentError,
    UnavailableError,
    hint_of,
)
from agentserving.transport.leader import Leader, split

CONTROL_PLANE = "AGENTSERVING_CONTROL_PLANE"


@dataclass(frozen=True, slots=True)
class Pem:
    """Certificates by content.

    ca: trusted CA, None = the system's. cert, key: our own certificate, for mutual TLS.
    server_name: name in the control planes' certificates, whatever their addresses; "" = the host of the address.
    """

    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    server_name: str = ""

    def read(self) -> Pem:
        """Itself, as `Tls.read` gives it."""
        return self

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates by the paths of PEM files, read for each new channel; the fields are those of `Pem`."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""

    @classmethod
    def of(cls, ca: str, cert: str, key: str, server_name: str = "") -> Self:
        """From the values of flags; "" = not given."""
        found = [Path(each) if each else None for each in (ca, cert, key)]
        return cls(found[0], found[1], found[2], server_name)

    def read(self) -> Pem:
        """The current content. OSError for a file that cannot be read."""
        return settled(self._once)

    def _once(self) -> Pem:
        return Pem(_content(self.ca), _content(self.cert), _content(self.key), self.server_name)


def _content(path: Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def tls_from_environment() -> Tls | None:
    """From AGENTSERVING_TLS_CA, _CERT, _KEY and _SERVER_NAME, as in the components; None when no file is named."""
    ca, cert, key = (os.environ.get(f"AGENTSERVING_TLS_{each}", "") for each in ("CA", "CERT", "KEY"))
    return Tls.of(ca, cert, key, os.environ.get("AGENTSERVING_TLS_SERVER_NAME", "")) if ca or cert or key else None


MAX_RESPONSE_BYTES = 64 << 20
# In this order: the first that holds a key of ours. The SDKs' variables may hold those of other services.
KEY_VARIABLES = ("AGENTSERVING_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")

Metadata = tuple[tuple[str, str], ...]


def key_from_environment() -> str:
    """The API key that agents use as well; empty when none of the variables holds a key of agentserving."""
    return next((text for name in KEY_VARIABLES if key_text.parse(text := os.environ.get(name, "")) is not None), "")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a client behaves.

    tls: by default from the environment; None = in the clear.
    deadline_s: seconds for one operation with all its attempts; enough for a write that waits for a slow store.
    attempts: 3 survive a gateway or control plane that restarts in about a second.
    first_delay_s: seconds before the second attempt, doubled for each further one, half of them random.
    api_key: the caller's credential, by default from the environment; "" = none.
    key_file: a file with the credential, read for each RPC; it is used when `api_key` is "".
    metadata: also sent with every RPC.
    max_response_bytes: a longer response fails with RESOURCE_EXHAUSTED before it is read into memory. The default fits
        lists of thousands of programs.
    """

    tls: Tls | Pem | None = field(default_factory=tls_from_environment)
    deadline_s: float = 10.0
    attempts: int = 3
    first_delay_s: float = 0.2
    metadata: Mapping[str, str] = field(default_factory=dict)
    api_key: str = field(default_factory=key_from_environment, repr=False, kw_only=True)
    key_file: Path | None = field(default=None, kw_only=True)
    max_response_bytes: int = field(default=MAX_RESPONSE_BYTES, kw_only=True)

    def pairs(self) -> Metadata:
        """Metadata as gRPC takes it. OSError when the key's file cannot be read."""
        key = self.api_key or (self.key_file.read_text().strip() if self.key_file is not None else "")
        return (*self.metadata.items(), *((("authorization", f"Bearer {key}"),) if key else ()))


def find_leader(given: str | None) -> Leader:
    """From the given addresses (separated by commas), else those of the environment. InvalidArgumentError."""
    addresses = given or os.environ.get(CONTROL_PLANE, "")
    if not addresses:
        raise InvalidArgumentError(
            f"address: expected host:port of the control plane, or set {CONTROL_PLANE}", field="address"
        )
    try:
        return Leader(split(addresses))
    except ValueError as error:
        raise InvalidArgumentError(f"address: {error}", field="address") from error


# A control plane that stops leading ends its calls as CANCELLED; a caller that cancels gets no gRPC error.
LOST = (UnavailableError, CancelledError)


def look_elsewhere(leader: Leader, error: AgentServingError, address: str, now_s: float) -> float | None:
    """After an error of the control plane at an address: None when the error is the leader's own answer, which others
    would repeat; else the seconds to wait before trying the address in `leader`."""
    if not isinstance(error, LOST) or error.reason not in ("", NOT_LEADER):
        return None
    return leader.failed(address, now_s, hint_of(error))


class Attempts:
    """The attempts of one operation, on a clock that the caller reads (seconds, monotonic).

    Searching for the leader is not an attempt: it goes on until the deadline, which a change of leaders fits into.
    """

    def __init__(self, settings: Settings, now_s: float, *, again: bool, leader: Leader) -> None:
        self._settings, self._again, self._leader = settings, again, leader
        self._until_s = now_s + settings.deadline_s
        self._made = 0

    def left_s(self, now_s: float) -> float:
        """Seconds for the attempt that begins now."""
        return max(0.001, self._until_s - now_s)

    def delay_s(self, error: AgentServingError, address: str, now_s: float) -> float | None:
        """Seconds to wait after a failed attempt at an address; None = no further attempt, raise the error."""
        delay = look_elsewhere(self._leader, error, address, now_s)
        # A follower has done nothing; what a control plane did that was lost is unknown.
        if delay is not None and (error.reason == NOT_LEADER or (self._again and self._leader.several)):
            delay *= random.uniform(0.5, 1.0)
            return delay if now_s + delay < self._until_s else None
        self._made += 1
        if not self._again or not isinstance(error, LOST) or self._made >= self._settings.attempts:
            return None
        delay = self._settings.first_delay_s * 2 ** (self._made - 1) * random.uniform(0.5, 1.0)
        delay = max(delay, error.retry_after_s)
        return delay if now_s + delay < self._until_s else None
