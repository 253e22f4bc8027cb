"""Certificates as opaque PEM, so that clusters without certificates do not load `cryptography`."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass

LEAF_LIFE = datetime.timedelta(days=90)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, PEM."""

    cert: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Authority:
    """A cluster's CA; `old` is its predecessor, until that expires."""

    ca: Pair
    old: Pair | None = None

    @property
    def trusted(self) -> bytes:
        """The content of ca.crt: every CA that may have signed a certificate in use."""
        return self.ca.cert + (self.old.cert if self.old else b"")


@dataclass(frozen=True, slots=True)
class Certificates:
    """All certificates of a cluster; leaves by name."""

    authority: Authority
    leaves: Mapping[str, Pair]


def is_uri(name: str) -> bool:
    """Whether a name in a certificate is a URI (an identity), and not a host or an address."""
    return "://" in name
