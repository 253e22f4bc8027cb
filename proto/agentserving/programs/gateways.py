"""Which requests are for our gateway: ids are sent there and nowhere else. Pure but for reading the environment."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol
from urllib.parse import urlsplit

# The first group with a variable that is set counts; with AGENTSERVING_GATEWAY, the others may name other servers.
ENVIRONMENT = (("AGENTSERVING_GATEWAY",), ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"))
_PORTS = {"http": 80, "https": 443}
# One host by three names: SDKs and environments differ in which they use.
_LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))

Origin = tuple[str, str, int]


class Url(Protocol):
    """The used part of httpx.URL."""

    @property
    def scheme(self) -> str: ...
    @property
    def host(self) -> str | None: ...
    @property
    def port(self) -> int | None: ...


@lru_cache(maxsize=64)
def origin_of(base_url: str) -> Origin | None:
    """Scheme, host and port of a base URL; None without a host."""
    try:
        parts = urlsplit(base_url if "//" in base_url else f"http://{base_url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return _origin(parts.scheme, host, port) if host else None


def _origin(scheme: str, host: str, port: int | None) -> Origin:
    return scheme, "localhost" if host in _LOOPBACK else host, port or _PORTS.get(scheme, 0)


@dataclass(frozen=True, slots=True)
class Gateways:
    """Base URLs of gateways. Empty: those of the environment at the time of each request."""

    base_urls: tuple[str, ...] = ()

    @classmethod
    def of(cls, base_urls: str | Iterable[str]) -> Gateways:
        """ValueError for a base URL without a host."""
        urls = tuple(filter(None, (base_urls,))) if isinstance(base_urls, str) else tuple(base_urls)
        for url in urls:
            if origin_of(url) is None:
                raise ValueError(f"base_urls: {url!r} names no host; give one like http://127.0.0.1:8080/v1")
        return cls(urls)

    def include(self, url: Url) -> bool:
        """True when this URL leads to a gateway."""
        origin = _origin(url.scheme, url.host or "", url.port)
        return any(origin == origin_of(base_url) for base_url in self.base_urls or _from_environment())


def _from_environment() -> tuple[str, ...]:
    for names in ENVIRONMENT:
        found = tuple(value for name in names if (value := os.environ.get(name)))
        if found:
            return found
    return ()
