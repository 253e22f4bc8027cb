"""Certificates as they are handed on: PEM, not looked into, so that whoever has none need not load `cryptography`."""

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
    """A cluster's CA; `old` = the one before, until it ends."""

    ca: Pair
    old: Pair | None = None

    @property
    def trusted(self) -> bytes:
        """ca.crt: all that may have signed what is in use."""
        return self.ca.cert + (self.old.cert if self.old else b"")


@dataclass(frozen=True, slots=True)
class Certificates:
    """All of a cluster's, leaves by their names."""

    authority: Authority
    leaves: Mapping[str, Pair]
