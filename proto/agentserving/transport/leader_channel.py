"""A channel to the control plane that leads, for those who keep one stream to it: gateways and sidecars.

while True:
    channel = await leader.channel()
    try:
        ...                            # a stream; `found` once it has answered, within FIRST_ANSWER_S
    except (grpc.aio.AioRpcError, TimeoutError) as error:
        await asyncio.sleep(await leader.failed(error))
"""

from __future__ import annotations

import random
import time

import grpc

from agentserving.transport.connection import Settings, Tls, dial
from agentserving.transport.errors import from_rpc, hint_of
from agentserving.transport.leader import Leader, split

# A stopped process takes connections in and says nothing.
FIRST_ANSWER_S = 2.0


class LeaderChannel:
    """One at a time. `addresses`: host:port, several with commas between."""

    def __init__(self, addresses: str, settings: Settings | None = None) -> None:
        self.leader = Leader(split(addresses))
        self._settings = settings or Settings(tls=None)
        self._channel: grpc.aio.Channel | None = None
        self._address = ""

    async def channel(self) -> grpc.aio.Channel:
        """To where the leader is looked for; a new one after `failed`."""
        if self._channel is None:
            self._address = self.leader.address
            ways = (grpc.aio.insecure_channel, grpc.aio.secure_channel)
            self._channel = dial(ways, self._address, self._settings, known=self.leader.known)
        return self._channel

    @property
    def address(self) -> str:
        """Of the channel there is, or was last."""
        return self._address

    def found(self) -> None:
        """It leads."""
        self.leader.found(self._address)

    async def failed(self, error: BaseException | None = None) -> float:
        """It does not lead, or is lost. Gives the seconds to wait, so spread that not all come at once."""
        hint = hint_of(from_rpc(error, self._address)) if isinstance(error, grpc.RpcError) else None
        delay = self.leader.failed(self._address, time.monotonic(), hint)
        await self.close()
        return delay * (0.5 + random.random())

    async def close(self) -> None:
        """Ends what is open."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


def settings_of(tls_ca: str, tls_cert: str, tls_key: str, server_name: str = "") -> Settings:
    """From the flags of a component: TLS when a CA is given."""
    if not tls_ca:
        return Settings(tls=None)
    # A key alone is nobody's.
    return Settings(tls=Tls.of(tls_ca, tls_cert, tls_key if tls_cert else "", server_name))
