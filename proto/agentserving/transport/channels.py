"""The only place that creates gRPC channels to control planes, sidecars and etcd.

None of them goes through an HTTP proxy: gRPC's C core honours `http_proxy` even for 127.0.0.1, and a corporate proxy
does not reach the parts of a cluster (grpc/grpc#29718).
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from agentserving.contract.names import SIDECAR_NAME
from agentserving.transport.connection import MAX_RESPONSE_BYTES, Pem, Settings

Options = tuple[tuple[str, int | str], ...]

# Options of every channel, whatever it leads to.
DIRECT: Options = (
    ("grpc.enable_http_proxy", 0),
    # Reads of thousands of programs, and watches of etcd, exceed the default of 4 MiB.
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    ("grpc.max_send_message_length", 16 << 20),
)

# To our own servers. The default first reconnect comes after a second: longer than a control plane needs to restart.
_RECONNECT: Options = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also the time limit of one attempt to connect: a busy machine needs it. A refused connection fails immediately.
    ("grpc.min_reconnect_backoff_ms", 2500),
    ("grpc.max_reconnect_backoff_ms", 2000),
)

# To control planes, whose servers permit it: one that is stopped or cut off is noticed before its lease expires. The
# reply may take long on a busy machine; no other control plane can lead before the lease expires anyway.
_KEEPALIVE: Options = (
    ("grpc.keepalive_time_ms", 1000),
    # gRPC 1.85 waits this long for a reply, a minute by default; there keepalive_timeout_ms alone has no effect.
    ("grpc.http2.ping_timeout_ms", 2500),
    ("grpc.keepalive_timeout_ms", 2500),
    ("grpc.http2.max_pings_without_data", 0),
    # A Service's address leads to another control plane at each new connection.
    ("grpc.use_local_subchannel_pool", 1),
)


def dial(address: str, settings: Settings, *, known: Sequence[str] = ()) -> grpc.Channel:
    """A blocking channel to a control plane (`known`: the addresses configured for control planes) or a sidecar (none).

    OSError when a certificate cannot be read.
    """
    return channel(address, *_plan(address, settings, known))


def channel(address: str, options: Options, pem: Pem | None) -> grpc.Channel:
    """A blocking channel with these options besides DIRECT; `pem` None = in the clear."""
    if pem is None:
        return grpc.insecure_channel(address, options=_merged(options))
    return grpc.secure_channel(address, pem.credentials(), options=_merged(options))


def dial_async(address: str, settings: Settings, *, known: Sequence[str] = ()) -> grpc.aio.Channel:
    """As `dial`, for asyncio."""
    return channel_async(address, *_plan(address, settings, known))


def channel_async(address: str, options: Options, pem: Pem | None) -> grpc.aio.Channel:
    """An asyncio channel with these options besides DIRECT; `pem` None = in the clear."""
    if pem is None:
        return grpc.aio.insecure_channel(address, options=_merged(options))
    return grpc.aio.secure_channel(address, pem.credentials(), options=_merged(options))


def _merged(options: Options) -> Options:
    """DIRECT, with these options in place of those of the same name."""
    return tuple(dict((*DIRECT, *options)).items())


def _plan(address: str, settings: Settings, known: Sequence[str]) -> tuple[Options, Pem | None]:
    """Options and certificates of a channel.

    A control plane that a follower has named is not among the known addresses: its certificate is checked against the
    name of a known one. All sidecars' certificates carry one name.
    """
    bound = (("grpc.max_receive_message_length", settings.max_response_bytes),)
    options = (*_RECONNECT, *(_KEEPALIVE if known else ()), *bound)
    if settings.tls is None:
        return options, None
    pem = settings.tls.read()
    name = verified_name(address, pem, known)
    if name != _host(address):
        options = (*options, ("grpc.ssl_target_name_override", name))
    return options, pem


def verified_name(address: str, pem: Pem, known: Sequence[str]) -> str:
    """The name that the certificate at an address must have."""
    if not known:
        return SIDECAR_NAME
    return pem.server_name or _host(known[0] if address not in known else address)


def _host(address: str) -> str:
    return address.rpartition(":")[0]
