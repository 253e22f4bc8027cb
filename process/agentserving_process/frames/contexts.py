"""TLS contexts of framed streams from PEM files, as gRPC's credentials: TLS 1.2 or newer, and mutual with a CA."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agentserving.transport.connection import Pem, Tls
from agentserving.transport.server_tls import Log


def for_client(pem: Pem) -> ssl.SSLContext:
    """Checks the server's certificate and its name. OSError (ssl.SSLError) for certificates that are none."""
    context = ssl.create_default_context(cadata=pem.ca.decode() if pem.ca is not None else None)
    _use(context, pem)
    return context


def for_server(pem: Pem) -> ssl.SSLContext:
    """Clients must present a certificate when there is a CA. OSError (ssl.SSLError) for certificates that are none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if pem.ca is not None:
        context.load_verify_locations(cadata=pem.ca.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    _use(context, pem)
    return context


def renewed(tls: Tls, log: Log) -> Callable[[], ssl.SSLContext]:
    """The server's context for the next connection, made of the files as they are then; the last good one when they
    cannot be read. OSError when they cannot be read now."""
    known, context, logged = tls.read(), for_server(tls.read()), ""

    def current() -> ssl.SSLContext:
        nonlocal known, context, logged
        try:
            found = tls.read()
            if found != known:
                context = for_server(found)
                known, logged = found, ""
                log.info("certificates of framed streams were renewed")
        except (OSError, ValueError) as error:
            if str(error) != logged:
                logged = str(error)
                log.error("certificate cannot be read, using the previous one", error=logged)
        return context

    return current


def _use(context: ssl.SSLContext, pem: Pem) -> None:
    if pem.cert is not None:
        # OpenSSL's binding takes files only.
        with _file(pem.cert) as certificate, _file(pem.key or pem.cert) as key:
            context.load_cert_chain(certificate, key)


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """A file with this content, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("pem")
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        # Readable for its owner only.
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name
