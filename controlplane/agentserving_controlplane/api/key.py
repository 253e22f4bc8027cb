"""KeyService: messages to KeyOperations and back."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from agentserving.contract.identity import Role
from agentserving.contract.ids import Tenant
from agentserving.contract.keys import KeyRow
from agentserving.v1 import key_service_pb2 as pb
from agentserving.v1 import key_service_pb2_grpc as rpc
from google.protobuf.timestamp_pb2 import Timestamp

from agentserving_controlplane.api.authentication import check_tenant, current_caller
from agentserving_controlplane.api.conversion import service_class_to_number
from agentserving_controlplane.api.servicing import server_stream, unary
from agentserving_controlplane.api.streams import woken_by
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.errors import InvalidError
from agentserving_controlplane.key_operations import CreateKey
from agentserving_controlplane.table.service_rights import known_service_class

# Keys in one message of WatchKeys: some 150 kB.
MAX_TOGETHER = 1000
_ROLES = {
    Role.CLIENT: pb.ROLE_CLIENT,
    Role.ADMIN: pb.ROLE_ADMIN,
    Role.GATEWAY: pb.ROLE_GATEWAY,
    Role.SIDECAR: pb.ROLE_SIDECAR,
    Role.OPERATOR: pb.ROLE_OPERATOR,
    Role.CONTROL_PLANE: pb.ROLE_CONTROL_PLANE,
    Role.ENGINE: pb.ROLE_ENGINE,
}
_BY_NUMBER = {number: role for role, number in _ROLES.items()} | {pb.ROLE_UNSPECIFIED: Role.CLIENT}


class KeyServicer(rpc.KeyServiceServicer):
    """See key_service.proto."""

    def __init__(self, plane: ControlPlane) -> None:
        self._keys = plane.api_keys

    @unary
    async def CreateKey(self, request: pb.CreateKeyRequest, tenant: Tenant) -> pb.CreateKeyResponse:
        made = await self._keys.create(_create_request(request))
        return pb.CreateKeyResponse(key=key_to_message(made.row), text=made.text)

    @unary
    async def ListKeys(self, request: pb.ListKeysRequest, tenant: Tenant) -> pb.ListKeysResponse:
        rows, next_token = self._keys.page(request.tenant, request.page_token, request.page_size)
        return pb.ListKeysResponse(keys=map(key_to_message, rows), next_page_token=next_token)

    @unary
    async def RevokeKey(self, request: pb.RevokeKeyRequest, tenant: Tenant) -> pb.RevokeKeyResponse:
        return pb.RevokeKeyResponse(key=key_to_message(await self._keys.revoke(request.key_id)))

    @server_stream
    async def WatchKeys(
        self, request: pb.WatchKeysRequest, tenant: Tenant
    ) -> AsyncGenerator[pb.WatchKeysResponse, None]:
        """All keys of clients, then what changes. A slow reader gets the latest state of what it missed."""
        seen = 0
        with woken_by(self._keys.listeners) as wake:
            while True:
                wake.clear()
                news = self._keys.changes_since(seen)
                seen = news.version
                if news.reset or news.changed or news.removed:
                    parts = range(0, max(1, len(news.changed)), MAX_TOGETHER)
                    for begin in parts:
                        yield pb.WatchKeysResponse(
                            reset=news.reset and begin == 0,
                            more=begin != parts[-1],
                            changed=map(_verifiable, news.changed[begin : begin + MAX_TOGETHER]),
                            removed_key_ids=news.removed if begin == parts[-1] else (),
                        )
                await wake.wait()


def _create_request(request: pb.CreateKeyRequest) -> CreateKey:
    role = _BY_NUMBER.get(request.role)
    if role is None:
        raise InvalidError("BAD_ROLE", "role: CLIENT or ADMIN", field="role")
    if len(request.idempotency_key.encode()) > 128:
        raise InvalidError("BAD_IDEMPOTENCY_KEY", "idempotency_key: at most 128 bytes", field="idempotency_key")
    lifetime_s = request.lifetime.seconds + request.lifetime.nanos / 1e9 if request.HasField("lifetime") else 0.0
    if request.HasField("lifetime") and lifetime_s <= 0:
        raise InvalidError("BAD_LIFETIME", "lifetime: one minute to ten years", field="lifetime")
    caller = current_caller()
    return CreateKey(
        role=role,
        tenant=check_tenant(request.tenant) if request.tenant else Tenant(""),
        name=request.name,
        lifetime_s=lifetime_s,
        idempotency_key=request.idempotency_key,
        caller=caller.credential if caller is not None else "",
        calls_per_minute=request.calls_per_minute,
        prompt_tokens_per_minute=request.prompt_tokens_per_minute,
        service_class=known_service_class(request.service_class),
    )


def key_to_message(row: KeyRow) -> pb.Key:
    """A row without its hash."""
    return pb.Key(
        key_id=row.key_id,
        role=_ROLES[row.role],
        tenant=row.tenant,
        name=row.name,
        create_time=_time(row.created_unix_s),
        expire_time=_time(row.expires_unix_s),
        revoke_time=_time(row.revoked_unix_s),
        calls_per_minute=row.calls_per_minute,
        prompt_tokens_per_minute=row.prompt_tokens_per_minute,
        service_class=service_class_to_number(row.service_class),
    )


def _time(unix_s: int) -> Timestamp | None:
    return Timestamp(seconds=unix_s) if unix_s else None


def _verifiable(row: KeyRow) -> pb.VerifiableKey:
    return pb.VerifiableKey(key=key_to_message(row), sha256=row.sha256)
