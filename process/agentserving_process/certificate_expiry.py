"""When the certificates of a process begin and end, as metrics. Files are read when they are scraped.

Both ends, so that an alert may compare what is left with the whole life: certificates of a day and of a year are due at
different times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from prometheus_client import Gauge


class Use(StrEnum):
    """What a certificate is for. A closed enum: it is a metric label."""

    # This process, towards other parts of the cluster.
    PART = "part"
    # Signs those of the other parts. Of several CAs the one that is valid for longest.
    CA = "ca"
    # This process, towards etcd.
    ETCD = "etcd"
    # This process, towards engines, and what signs those of engines.
    TO_ENGINES = "to-engines"
    ENGINES_CA = "engines-ca"
    # The gateway, towards its clients.
    FRONT = "front"
    # The picker, towards gateways of others.
    ENDPOINT_PICKER = "endpoint-picker"


_CAS = (Use.CA, Use.ENGINES_CA)
_STARTS = Gauge(
    "agentserving_certificate_start_timestamp_seconds", "Unix time from which a certificate is valid", ["certificate"]
)
_ENDS = Gauge(
    "agentserving_certificate_expiry_timestamp_seconds",
    "Unix time at which a certificate expires; NaN: its file cannot be read",
    ["certificate"],
)


def report(use: Use, file: str | Path | None) -> None:
    """Reports the certificate in a PEM file from now on; nothing for a process without one."""
    if not file:
        return
    path = Path(file)
    _STARTS.labels(use.value).set_function(_time(path, use, lambda found: found.not_valid_before_utc.timestamp()))
    _ENDS.labels(use.value).set_function(_time(path, use, lambda found: found.not_valid_after_utc.timestamp()))


def _time(path: Path, use: Use, time_of: Callable[[x509.Certificate], float]) -> Callable[[], float]:
    def read() -> float:
        try:
            chain = x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError):
            return math.nan
        # The first of a chain is its owner's.
        return time_of(max(chain, key=lambda each: each.not_valid_after_utc) if use in _CAS else chain[0])

    return read
