"""How our own HTTP clients reach engines: in the clear, or by TLS, when a CA says whose certificates engines have.

Engines are dialled by address, which no certificate can contain. Each has a name of its own in its certificate, so that
none can stand in for another one.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import structlog
from agentserving.contract.names import engine_name
from agentserving.contract.replaced_files import settled

from agentserving_process.supervision import CannotStartError

log = structlog.get_logger()


def check_engine_files(ca: Path | None, cert: Path | None, key: Path | None) -> None:
    """ValueError for flags that do not go together."""
    if (cert is None) != (key is None):
        raise ValueError("--engine-cert and --engine-key: give both or neither")
    if cert is not None and ca is None:
        raise ValueError("--engine-cert: --engine-ca is needed with it: engines without a certificate speak http")


def report_expiry(ca: Path | None, cert: Path | None) -> None:
    """Reports in the metrics when these certificates end; nothing of those that are not given."""
    if ca is None:
        return
    # Not every process has certificates, and `cryptography` takes 10 MB.
    from agentserving_process.certificate_expiry import Use, report

    report(Use.ENGINES_CA, ca)
    report(Use.TO_ENGINES, cert)


class EngineTls:
    """For aiohttp. `ca` None: engines speak http. `cert` and `key`: ours, for engines that ask for one.

    The files are read again when they change.
    """

    def __init__(self, ca: Path | None = None, cert: Path | None = None, key: Path | None = None) -> None:
        """CannotStartError when a file cannot be read."""
        self._ca, self._pair = ca, (cert, key) if cert is not None and key is not None else None
        self._known: tuple[bytes, ...] = ()
        self._complaint = ""
        self._context: ssl.SSLContext | None = None
        if ca is not None:
            try:
                self._renew(ca)
            except (OSError, ValueError) as error:
                flags = "--engine-ca" if self._pair is None else "--engine-ca, --engine-cert, --engine-key"
                raise CannotStartError(f"{flags}: {self._files(ca)}: {error}") from None

    def url(self, address: str, path: str) -> str:
        """Of a path of an engine at host:port."""
        return f"{'http' if self._ca is None else 'https'}://{address}{path}"

    def options(self, engine_id: str) -> dict[str, Any]:
        """Arguments of aiohttp's requests to this engine."""
        if self._ca is None:
            return {}
        try:
            self._renew(self._ca)
        except (OSError, ValueError) as error:
            if str(error) != self._complaint:
                log.error(
                    "cannot read certificates for connections to engines, using the previous ones",
                    files=self._files(self._ca), error=str(error),
                )  # fmt: skip
            self._complaint = str(error)
        return {"ssl": self._context, "server_hostname": engine_name(engine_id)}

    def _files(self, ca: Path) -> str:
        return ", ".join(str(each) for each in (ca, *(self._pair or ())))

    def _renew(self, ca: Path) -> None:
        """OSError (ssl.SSLError), ValueError."""
        paths = (ca, *(self._pair or ()))
        found = settled(lambda: tuple(each.read_bytes() for each in paths))
        if found == self._known:
            return
        context = ssl.create_default_context(cadata=found[0].decode("ascii"))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._pair is not None:
            context.load_cert_chain(*self._pair)
        self._context, self._known, self._complaint = context, found, ""
