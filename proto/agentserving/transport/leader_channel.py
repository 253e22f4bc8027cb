"""A channel to the control plane that leads, for clients that keep one stream to it: gateways and sidecars.

    channel = await leader.channel()
    try:
        ...                            # a stream; call `found` once it has answered, within FIRST_ANSWER_S
    except Exception as error:
        await asyncio.sleep(await leader.failed(error))

agentserving_process.leader_stream is the loop around it.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import grpc

from agentserving.transport.channels import dial_async, verified_name
from agentserving.transport.connection import Metadata, Settings, Tls
from agentserving.transport.errors import from_rpc, hint_of
from agentserving.transport.framed import FramedEndpoint, framed_address
from agentserving.transport.leader import Leader, split

# A stopped process still accepts connections, but does not answer.
FIRST_ANSWER_S = 2.0


class LeaderChannel:
    """One channel at a time. `addresses`: host:port, several separated by commas; ValueError for anything else."""

    def __init__(self, addresses: str, settings: Settings | None = None) -> None:
        self.leader = Leader(split(addresses))
        self._settings = settings or Settings(tls=None, api_key="")
        self._channel: grpc.aio.Channel | None = None
        self._address = ""

    async def channel(self) -> grpc.aio.Channel:
        """A channel to the presumed leader; a new one after `failed`. OSError when a certificate cannot be read."""
        if self._channel is None:
            self._address = self.leader.address
            self._channel = dial_async(self._address, self._settings, known=self.leader.known)
        return self._channel

    async def framed(self) -> FramedEndpoint | None:
        """Where the control plane at the other end serves framed streams; None: it has only gRPC.

        grpc.RpcError, such as NOT_LEADER; OSError when a certificate or the credential cannot be read.
        """
        address = await framed_address(await self.channel(), self.metadata(), FIRST_ANSWER_S)
        if not address:
            return None
        pem = self._settings.tls.read() if self._settings.tls is not None else None
        return FramedEndpoint(
            address=address,
            pem=pem,
            # Of the same process, so the name is the one that gRPC has verified.
            server_name=verified_name(self._address, pem, self.leader.known).strip("[]") if pem is not None else "",
            max_response_bytes=self._settings.max_response_bytes,
        )

    def metadata(self) -> Metadata:
        """Of the calls on it: our credential. OSError when its file cannot be read."""
        return self._settings.pairs()

    @property
    def address(self) -> str:
        """Where the current channel leads, or the last one did."""
        return self._address

    def found(self) -> None:
        """The other end of the channel leads."""
        self.leader.found(self._address)

    async def failed(self, error: BaseException | None = None) -> float:
        """The other end does not lead, or the stream broke. Closes the channel.

        Returns the seconds to wait before the next one, with jitter: all clients lose a leader at the same moment.
        """
        hint = hint_of(from_rpc(error, self._address)) if isinstance(error, grpc.RpcError) else None
        delay = self.leader.failed(self._address, time.monotonic(), hint)
        await self.close()
        return delay * (0.5 + random.random())

    async def close(self) -> None:
        """Closes the channel, if there is one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


def settings_of(
    tls_ca: str, tls_cert: str, tls_key: str, server_name: str = "", token_file: Path | None = None
) -> Settings:
    """From the flags of a component: TLS when a CA is given, mutual TLS when a certificate is.

    The environment's API key is a client's, never a component's.
    """
    tls = Tls.of(tls_ca, tls_cert, tls_key if tls_cert else "", server_name) if tls_ca else None
    return Settings(tls=tls, api_key="", key_file=token_file)
