"""Each process says when its certificates end, of the files as they are now."""

from __future__ import annotations

import datetime
import math
from pathlib import Path

from agentserving_gateway.ext_proc.self_signed import LIFE, self_signed
from agentserving_process import engine_tls
from agentserving_process.certificate_expiry import Use, report
from agentserving_process.tls import TlsOptions
from prometheus_client import REGISTRY

EXPIRY, START = (f"agentserving_certificate_{end}_timestamp_seconds" for end in ("expiry", "start"))
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def value(name: str, use: Use) -> float | None:
    return REGISTRY.get_sample_value(name, {"certificate": use.value})


def pem(now: datetime.datetime) -> bytes:
    return self_signed(now)[1]


def test_a_renewed_file_is_reported_without_a_restart_and_a_broken_one_as_nan(tmp_path: Path) -> None:
    file = tmp_path / "tls.crt"
    file.write_bytes(pem(NOW) + pem(NOW - LIFE / 2))
    report(Use.FRONT, file)
    assert value(EXPIRY, Use.FRONT) == (NOW + LIFE).timestamp()
    begun = value(START, Use.FRONT)
    assert begun is not None
    assert begun <= NOW.timestamp()
    later = NOW + datetime.timedelta(days=30)
    file.write_bytes(pem(later))
    assert value(EXPIRY, Use.FRONT) == (later + LIFE).timestamp()
    for broken in (b"", b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"):
        file.write_bytes(broken)
        assert math.isnan(value(EXPIRY, Use.FRONT) or 0.0)
    file.unlink()
    assert math.isnan(value(EXPIRY, Use.FRONT) or 0.0)


def test_of_several_cas_the_one_that_is_valid_for_longest_counts(tmp_path: Path) -> None:
    """After a change of the CA the old one stays in the file until it expires, as it should."""
    ca, cert = tmp_path / "ca.crt", tmp_path / "tls.crt"
    ca.write_bytes(pem(NOW - LIFE) + pem(NOW))
    cert.write_bytes(pem(NOW))
    TlsOptions(tls_ca=str(ca), tls_cert=str(cert), tls_key="unused").report_expiry()
    assert value(EXPIRY, Use.CA) == value(EXPIRY, Use.PART) == (NOW + LIFE).timestamp()


def test_a_process_without_certificates_reports_none() -> None:
    report(Use.ETCD, "")
    TlsOptions().report_expiry()
    assert value(EXPIRY, Use.ETCD) is None


def test_certificates_towards_engines_are_reported_by_a_process_that_has_them(tmp_path: Path) -> None:
    engine_tls.report_expiry(None, None)
    ca, cert = tmp_path / "ca.crt", tmp_path / "tls.crt"
    # A former CA stays in the file until it ends.
    ca.write_bytes(pem(NOW - LIFE / 2) + pem(NOW))
    cert.write_bytes(pem(NOW - LIFE / 2))
    engine_tls.report_expiry(ca, cert)
    assert value(EXPIRY, Use.ENGINES_CA) == (NOW + LIFE).timestamp()
    assert value(EXPIRY, Use.TO_ENGINES) == (NOW + LIFE / 2).timestamp()
