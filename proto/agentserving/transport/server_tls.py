"""Certificates of a server, read for every connection, so that renewed ones need no restart."""

from __future__ import annotations

from typing import Any, Protocol

import grpc

from agentserving.transport.connection import Pem, Tls


class Log(Protocol):
    """A logger with fields, such as structlog's."""

    def info(self, event: str, **fields: Any) -> Any: ...

    def error(self, event: str, **fields: Any) -> Any:
        """Logs a failure."""


def server_credentials(tls: Tls, log: Log) -> grpc.ServerCredentials:
    """Clients must present a certificate when a CA is given. OSError when a file cannot be read now."""
    # types-grpcio does not know that the callback may return None: nothing has changed.
    renewed: Any = _Renewed(tls, log)
    return grpc.dynamic_ssl_server_credentials(_configuration(tls.read()), renewed, tls.ca is not None)


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key or b"", pem.cert or b"")], pem.ca)


class _Renewed:
    """Called by gRPC before each handshake, on its own thread."""

    def __init__(self, tls: Tls, log: Log) -> None:
        self._tls, self._log = tls, log
        self._known = tls.read()
        self._logged = ""

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificates; None when nothing has changed."""
        try:
            found = self._tls.read()
        except OSError as error:
            if str(error) != self._logged:
                self._logged = str(error)
                self._log.error("certificate cannot be read, using the previous one", error=self._logged)
            return None
        if found == self._known:
            return None
        self._known, self._logged = found, ""
        self._log.info("certificates were renewed")
        return _configuration(found)
