"""A control plane as its process serves it: two ports with TLS, keys required. Played by its callers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from agentserving.contract.identity import Role
from agentserving.contract.keys import NewKey, new_key
from agentserving.transport.connection import Pem
from agentserving.transport.framed import FramedEndpoint, framed_address
from agentserving_cli.local.ports import free_ports
from agentserving_controlplane.__main__ import Servers
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.settings import AccessOptions, ClientAuth, Serving, Settings
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.store.port import Store
from agentserving_process.tls import TlsOptions
from agentserving_process.web_tokens.watch import JwksWatch, TokenOptions
from support.eventually import DEADLINE_S
from support.role_certificates import SERVER_NAME, RoleCertificates
from support.served_plane import SETTINGS

Metadata = tuple[tuple[str, str], ...]
CLUSTER = "ns/demo"


def uri(role: str, cluster: str = CLUSTER) -> str:
    return f"spiffe://agentserving/{cluster}/{role}"


def bearer(text: str) -> Metadata:
    return (("authorization", f"Bearer {text}"),)


def a_key(tenant: str = "", role: Role = Role.CLIENT, **fields: Any) -> NewKey:
    return new_key(role, tenant, **{"now_unix_s": time.time(), **fields})


class GuardedPlane:
    """`async with guarded(...)`. `parts` and `clients` make channels to the two ports."""

    def __init__(self, stack: AsyncExitStack, certificates: RoleCertificates | None, settings: Settings) -> None:
        self._stack, self._certificates, self._settings = stack, certificates, settings
        self.plane: ControlPlane
        self.tokens: JwksWatch | None = None
        # Of those who ask where framed streams are, where certificates do not say who they are.
        self.finder: Metadata = ()
        self._channels: dict[Any, grpc.aio.Channel] = {}

    async def _channel(self, address: str, *uris: str, certificate: bool) -> grpc.aio.Channel:
        known = self._channels.get((address, uris, certificate))
        if known is not None:
            return known
        if self._certificates is None:
            channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        else:
            channel = grpc.aio.secure_channel(
                address,
                self._certificates.credentials(*uris, certificate=certificate),
                options=[("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.use_local_subchannel_pool", 1)],
            )
        self._channels[(address, uris, certificate)] = channel
        await self._stack.enter_async_context(channel)
        return channel

    async def parts(self, *roles: str, cluster: str = CLUSTER, certificate: bool = True) -> grpc.aio.Channel:
        """To the parts' port, with a certificate of these roles (`sidecar/e1`)."""
        address = self._settings.serving.listen
        return await self._channel(address, *(uri(role, cluster) for role in roles), certificate=certificate)

    async def framed(self, *roles: str, cluster: str = CLUSTER, certificate: bool = True) -> FramedEndpoint:
        """The parts' framed streams, with a certificate of these roles."""
        # As clients find it; without TLS anyone may ask.
        address = await framed_address(await self.parts("sidecar/any"), self.finder, DEADLINE_S)
        if self._certificates is None:
            return FramedEndpoint(address=address)
        key, cert = self._certificates.leaf(*(uri(role, cluster) for role in roles))
        pem = Pem(self._certificates.ca, cert, key) if certificate else Pem(self._certificates.ca)
        return FramedEndpoint(address=address, pem=pem, server_name=SERVER_NAME)

    async def clients(self) -> grpc.aio.Channel:
        """To the clients' port, without a certificate."""
        return await self._channel(self._settings.serving.clients_listen, certificate=False)


@asynccontextmanager
async def guarded(
    directory: Path | None,
    store: Store | None = None,
    *,
    two_ports: bool = True,
    tokens: TokenOptions | None = None,
    **access: Any,
) -> AsyncIterator[GuardedPlane]:
    """With TLS when there is a directory for its files."""
    ports = free_ports(2)
    certificates = RoleCertificates() if directory is not None else None
    store = store or MemoryStore()
    settings = Settings(
        plane=SETTINGS,
        serving=Serving(
            listen=f"127.0.0.1:{ports[0]}", clients_listen=f"127.0.0.1:{ports[1]}" if two_ports else "",
            streams_listen="127.0.0.1:0",
        ),
        access=AccessOptions(client_auth=ClientAuth.KEYS, cluster=CLUSTER, **access),
        tls=TlsOptions(**certificates.write(directory, uri("control-plane"))) if certificates and directory
        else TlsOptions(),
        tokens=tokens or TokenOptions(),
    )  # fmt: skip
    servers = Servers(settings)
    await servers.start()
    plane = ControlPlane(SETTINGS, store, await store.acquire("t"), lambda error: None, settings.access)
    await plane.recover(store)
    await servers.open(plane)
    async with AsyncExitStack() as stack:
        served = GuardedPlane(stack, certificates, settings)
        served.plane, served.tokens = plane, servers.tokens
        yield served
    await servers.stop(0)
    await plane.commits.close(1)
