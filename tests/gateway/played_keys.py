"""The leader's part of KeyService towards gateways, played: a set of keys that tests change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import msgspec
from agentserving.contract.identity import Role
from agentserving.contract.keys import KeyRow, new_key
from agentserving.v1 import key_service_pb2 as pb
from agentserving.v1 import key_service_pb2_grpc as rpc
from agentserving.v1 import types_pb2


def verifiable(row: KeyRow) -> pb.VerifiableKey:
    """A row as gateways get it."""
    message = pb.VerifiableKey(sha256=row.sha256)
    key = message.key
    key.key_id, key.role, key.tenant, key.name = row.key_id, pb.ROLE_CLIENT, row.tenant, row.name
    key.create_time.FromSeconds(row.created_unix_s)
    key.calls_per_minute, key.prompt_tokens_per_minute = row.calls_per_minute, row.prompt_tokens_per_minute
    key.service_class = types_pb2.ServiceClass.ValueType(row.service_class)
    if row.expires_unix_s:
        key.expire_time.FromSeconds(row.expires_unix_s)
    if row.revoked_unix_s:
        key.revoke_time.FromSeconds(row.revoked_unix_s)
    return message


class PlayedKeys(rpc.KeyServiceServicer):
    """`silent`: gateways get no answer."""

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.rows: dict[str, KeyRow] = {}
        self._watchers: list[asyncio.Queue[pb.WatchKeysResponse]] = []

    def serve(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server."""
        rpc.add_KeyServiceServicer_to_server(self, server)

    def make(self, tenant: str, lifetime_s: float = 0, age_s: float = 0, **limits: Any) -> str:
        """A key's text."""
        key = new_key(Role.CLIENT, tenant, now_unix_s=time.time() - age_s, lifetime_s=lifetime_s)
        self._put(msgspec.structs.replace(key.row, **limits))
        return key.text

    def revoke(self, text: str) -> None:
        """Ends a key."""
        row = self.rows[text[3:11]]
        self._put(msgspec.structs.replace(row, revoked_unix_s=int(time.time())))

    def forget(self, text: str) -> None:
        """Removes a key's row."""
        del self.rows[text[3:11]]
        self._send(pb.WatchKeysResponse(removed_key_ids=[text[3:11]]))

    def _put(self, row: KeyRow) -> None:
        self.rows[row.key_id] = row
        self._send(pb.WatchKeysResponse(changed=[verifiable(row)]))

    def _send(self, message: pb.WatchKeysResponse) -> None:
        for queue in self._watchers:
            queue.put_nowait(message)

    def whole(self) -> Iterable[pb.WatchKeysResponse]:
        """The set, in as many messages as it has keys."""
        messages = [pb.WatchKeysResponse(changed=[verifiable(row)], more=True) for row in self.rows.values()]
        messages = messages or [pb.WatchKeysResponse()]
        messages[0].reset, messages[-1].more = True, False
        return messages

    async def WatchKeys(self, request: pb.WatchKeysRequest, context: Any) -> AsyncIterator[pb.WatchKeysResponse]:
        if self.silent:
            await asyncio.Event().wait()
        queue: asyncio.Queue[pb.WatchKeysResponse] = asyncio.Queue()
        for message in self.whole():
            queue.put_nowait(message)
        self._watchers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.remove(queue)
