"""A server's certificates: read anew for every connection, so that renewed ones need no restart."""

from __future__ import annotations

from typing import Any, Protocol

import grpc

from agentserving.transport.connection import Pem, Tls


class Log(Protocol):
    """A logger with fields, as structlog's."""

    def info(self, event: str, **fields: Any) -> Any:
        """Something has happened."""

    def error(self, event: str, **fields: Any) -> Any:
        """Somebody should look."""


def server_credentials(tls: Tls, log: Log) -> grpc.ServerCredentials:
    """Client certificates are asked for when a CA is named. OSError when a file cannot be read now."""
    # Its type is said wrong in types-grpcio: None means that nothing has changed.
    renewed: Any = _Renewed(tls, log)
    return grpc.dynamic_ssl_server_credentials(_configuration(tls.read()), renewed, tls.ca is not None)


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key or b"", pem.cert or b"")], pem.ca)


class _Renewed:
    """gRPC asks it before each handshake, on a thread of its own."""

    def __init__(self, tls: Tls, log: Log) -> None:
        self._tls, self._log = tls, log
        self._known = tls.read()
        self._said = ""

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """None = as before."""
        try:
            found = self._tls.read()
        except OSError as error:
            if str(error) != self._said:
                self._said = str(error)
                self._log.error("certificate cannot be read, the one before is used", error=self._said)
            return None
        if found == self._known:
            return None
        self._known, self._said = found, ""
        self._log.info("certificates were renewed")
        return _configuration(found)
