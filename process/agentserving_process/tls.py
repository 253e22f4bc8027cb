"""Flags for certificates: of a server, and of its connections to the leader. Files are read again when they change."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from agentserving.transport.connection import Settings, Tls
from agentserving.transport.leader import split
from agentserving.transport.leader_channel import settings_of
from agentserving.transport.server_tls import server_credentials

from agentserving_process.frames import contexts
from agentserving_process.options import option
from agentserving_process.supervision import CannotStartError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """Certificates"""

    tls_ca: str = option("", "PEM file of the CA that peers' certificates are checked against; none: no TLS")
    tls_cert: str = option("", "PEM file of this process's certificate")
    tls_key: str = option("", "PEM file of its private key")

    def __post_init__(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("--tls-cert and --tls-key: give both or neither")

    def server(self) -> grpc.ServerCredentials | None:
        """Credentials of a server, None without a certificate. With a CA, clients need one of its certificates.

        CannotStartError when a file cannot be read.
        """
        return self._server(self.tls_ca)

    def report_expiry(self) -> None:
        """Reports in the metrics when these certificates end."""
        if not (self.tls_cert or self.tls_ca):
            return
        # Not every process has certificates, and `cryptography` takes 10 MB.
        from agentserving_process.certificate_expiry import Use, report

        report(Use.PART, self.tls_cert)
        report(Use.CA, self.tls_ca)

    def server_for_clients(self) -> grpc.ServerCredentials | None:
        """The same for a server whose clients have no certificates, but keys."""
        return self._server("")

    def server_context(self) -> Callable[[], ssl.SSLContext] | None:
        """The same as `server` for framed streams: the context of the next connection.

        CannotStartError when a file cannot be read.
        """
        if not self.tls_cert:
            return None
        try:
            return contexts.renewed(Tls.of(self.tls_ca, self.tls_cert, self.tls_key), log)
        except (OSError, ValueError) as error:
            raise CannotStartError(str(error)) from None

    def _server(self, ca: str) -> grpc.ServerCredentials | None:
        if not self.tls_cert:
            return None
        try:
            return server_credentials(Tls.of(ca, self.tls_cert, self.tls_key), log)
        except OSError as error:
            raise CannotStartError(str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderOptions(TlsOptions):
    """Connection to the control planes"""

    control_plane: str = option("127.0.0.1:7070", "host:port of the control planes, separated by commas")
    tls_server_name: str = option("", "name in the control planes' certificates; none: the host of --control-plane")

    part_token_file: str = option("", "file with this process's token; none: its certificate says who it is")

    def __post_init__(self) -> None:
        # Zero-argument super() does not work in a dataclass with slots.
        TlsOptions.__post_init__(self)
        try:
            split(self.control_plane)
        except ValueError as error:
            raise ValueError(f"--control-plane: {error}") from None

    def client_settings(self) -> Settings:
        """For a LeaderChannel."""
        token = Path(self.part_token_file) if self.part_token_file else None
        return settings_of(self.tls_ca, self.tls_cert, self.tls_key, self.tls_server_name, token)
