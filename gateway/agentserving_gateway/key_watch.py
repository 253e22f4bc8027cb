"""The keys of clients, as the leader sends them: the whole set first, then each change. Also kept in a file.

The file holds hashes, never keys: with it a gateway that starts while no control plane leads knows its clients. While
the leader is away the last set stays in force, since only a leader revokes keys.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import structlog
from agentserving.contract.identity import Role
from agentserving.contract.ids import Tenant
from agentserving.contract.keys import KeyRow, KeySet, decode_rows, encode_rows
from agentserving.contract.service_class import ServiceClass
from agentserving.transport.leader_channel import LeaderChannel
from agentserving.v1 import key_service_pb2 as pb
from agentserving.v1 import key_service_pb2_grpc as rpc
from agentserving_process.leader_stream import LeaderStream

from agentserving_gateway import metrics

log = structlog.get_logger()
_ANY = ServiceClass.UNSPECIFIED


class KeyWatch:
    """`run` is its supervised task. Implements StreamEvents; nothing is ever sent but the request."""

    def __init__(self, channel: LeaderChannel, file: Path) -> None:
        """`channel`: of its own, since a stream closes its channel when it breaks."""
        self._file = file
        self._keys: KeySet | None = _loaded(file)
        # A set that is not complete yet.
        self._coming: list[KeyRow] | None = None
        # The set is the one of the leader that is connected.
        self._is_current = False
        self._stream: LeaderStream[pb.WatchKeysRequest, pb.WatchKeysResponse] = LeaderStream(
            "keys",
            channel,
            lambda to: rpc.KeyServiceStub(to).WatchKeys(pb.WatchKeysRequest(), metadata=channel.metadata()),
            self,
        )

    def current(self) -> KeySet | None:
        """The keys in force; None while no set is known."""
        return self._keys

    @property
    def is_connected(self) -> bool:
        """True while the leader sends changes."""
        return self._stream.is_connected

    @property
    def is_current(self) -> bool:
        """True while the leader is connected and has sent its whole set: keys that are not in it do not exist."""
        return self._is_current

    async def run(self) -> None:
        """Watches until it is cancelled."""
        await self._stream.run()

    # -- StreamEvents --------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Any leader is asked without delay."""

    def greeting(self) -> list[pb.WatchKeysRequest]:
        """The request is part of the call."""
        return []

    def connected(self) -> None:
        """The set follows."""
        self._coming, self._is_current = None, False

    def lost(self) -> None:
        """The last complete set stays in force."""
        self._coming, self._is_current = None, False

    def received(self, response: pb.WatchKeysResponse) -> None:
        """A part of the set, or changes of it."""
        rows = [_row(each) for each in response.changed]
        if response.reset or self._coming is not None:
            self._coming = [*([] if response.reset else self._coming or ()), *rows]
            if response.more:
                return
            self._keys, self._coming, self._is_current = KeySet(self._coming), None, True
        elif self._keys is not None:
            for row in rows:
                self._keys.put(row)
            for key_id in response.removed_key_ids:
                self._keys.remove(key_id)
        else:
            raise ValueError("the leader sent changes of keys before the set")
        metrics.KEYS.set(len(self._keys))
        self._save(self._keys)

    def _save(self, keys: Iterable[KeyRow]) -> None:
        """Whole and renamed, so that half of it is never read."""
        scratch = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            scratch.touch(mode=0o600)
            scratch.write_bytes(encode_rows(keys))
            scratch.replace(self._file)
        except OSError as error:
            log.error("cannot write the file of keys", path=str(self._file), error=str(error))


def _loaded(file: Path) -> KeySet | None:
    try:
        return KeySet(decode_rows(file.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("cannot read the file of keys: waiting for the leader's", path=str(file), error=str(error))
        return None


def _row(message: pb.VerifiableKey) -> KeyRow:
    key = message.key
    return KeyRow(
        key_id=key.key_id,
        sha256=message.sha256,
        role=Role.CLIENT,
        tenant=Tenant(key.tenant),
        name=key.name,
        created_unix_s=key.create_time.seconds,
        expires_unix_s=key.expire_time.seconds,
        revoked_unix_s=key.revoke_time.seconds,
        calls_per_minute=key.calls_per_minute,
        prompt_tokens_per_minute=key.prompt_tokens_per_minute,
        # One that only newer control planes know may use the least.
        service_class=ServiceClass(key.service_class) or (ServiceClass.BATCH if key.service_class else _ANY),
    )
