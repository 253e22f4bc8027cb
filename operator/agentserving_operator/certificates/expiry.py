"""Which certificates should have been renewed long ago. Pure: the time is an argument."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from cryptography import x509


def overdue(certificates: Mapping[str, bytes], now: datetime.datetime) -> dict[str, datetime.datetime]:
    """When each expires of which less than a sixth of its life is left. `certificates`: PEM chains by name.

    Ours are renewed when a third is left, so renewal has failed for as long again. What is no certificate is left out:
    whoever uses it says so.
    """
    found = {}
    for name, pem in certificates.items():
        try:
            # The first of a chain is its owner's.
            cert = x509.load_pem_x509_certificates(pem)[0]
        except ValueError:
            continue
        begun, ends = cert.not_valid_before_utc, cert.not_valid_after_utc
        if ends - now < (ends - begun) / 6:
            found[name] = ends
    return found
