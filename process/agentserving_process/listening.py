"""Addresses to listen on, and why one cannot be used."""

from __future__ import annotations

import os
import socket

import grpc

from agentserving_process.addresses import split_address
from agentserving_process.supervision import CannotStartError


def reachable(listen: str) -> str:
    """The address for others of a server that listens there: the host's name replaces a wildcard."""
    host, port = split_address(listen)
    return f"{socket.gethostname()}:{port}" if host in ("0.0.0.0", "::", "") else listen


def listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
    """Opens a port of a gRPC server; gives its number. CannotStartError says why it cannot."""
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        # gRPC writes the cause to its own log only.
        raise CannotStartError(f"cannot listen on {address}: {why_not(address)}") from None


def cannot_listen(address: str, error: OSError) -> CannotStartError:
    """The error for a port that asyncio could not open."""
    # asyncio repeats the address in strerror; the resolver's errors have negative codes of their own.
    cause = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    return CannotStartError(f"cannot listen on {address}: {cause}")


def why_not(address: str) -> str:
    """The reason why a server cannot listen on an address, found by trying."""
    try:
        host, port = split_address(address)
        for family, kind, protocol, _, target in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(target)
                probe.listen()
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return str(error)
    return "gRPC gives no reason"
