"""KeyService on a live control plane: keys are durable, revocation is immediate everywhere, limits hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import msgspec
import pytest
from agentserving.contract.identity import Role
from agentserving.contract.ids import Tenant
from agentserving.contract.keys import KeyRefusal, KeyRefusedError, hash_of, parse
from agentserving.v1 import call_service_pb2, call_service_pb2_grpc, program_service_pb2, program_service_pb2_grpc
from agentserving.v1 import key_service_pb2 as pb
from agentserving.v1 import key_service_pb2_grpc as rpc
from agentserving_controlplane import key_operations
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.errors import ExistsError, InvalidError, OverloadedError
from agentserving_controlplane.key_operations import KEYS_PREFIX, CreateKey
from agentserving_controlplane.settings import AccessOptions
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.store.port import Write
from controlplane.guarded_plane import GuardedPlane, a_key, bearer, guarded
from google.protobuf.duration_pb2 import Duration
from support.eventually import DEADLINE_S
from support.served_plane import SETTINGS, refusal

ADMIN, GATEWAY = a_key(role=Role.ADMIN), a_key(role=Role.GATEWAY)
AS_ADMIN, AS_GATEWAY = bearer(ADMIN.text), bearer(GATEWAY.text)
ACME = Tenant("acme")


@asynccontextmanager
async def served(store: MemoryStore | None = None) -> AsyncIterator[tuple[GuardedPlane, rpc.KeyServiceStub]]:
    async with guarded(None, store, two_ports=False, bootstrap_keys=(ADMIN.row, GATEWAY.row)) as plane:
        yield plane, rpc.KeyServiceStub(await plane.parts())


async def create(keys: Any, tenant: str = "acme", **fields: Any) -> pb.CreateKeyResponse:
    answer: pb.CreateKeyResponse = await keys.CreateKey(
        pb.CreateKeyRequest(tenant=tenant, **fields), metadata=AS_ADMIN, timeout=DEADLINE_S
    )
    return answer


async def opens(plane: GuardedPlane, text: str) -> str:
    """The reason for which a key is refused; empty when it is not."""
    programs = program_service_pb2_grpc.ProgramServiceStub(await plane.parts())
    request = program_service_pb2.ListProgramsRequest()
    try:
        await programs.ListPrograms(request, metadata=bearer(text), timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        return (await refusal(_raising(error))).reason
    return ""


async def _raising(error: grpc.aio.AioRpcError) -> None:
    raise error


async def test_a_key_opens_its_tenant_and_its_text_is_stored_nowhere() -> None:
    store = MemoryStore()
    async with served(store) as (plane, keys):
        made = await create(keys, name="ci")
        assert (made.key.tenant, made.key.name, made.key.role) == ("acme", "ci", pb.ROLE_CLIENT)
        assert parse(made.text) == made.key.key_id
        assert await opens(plane, made.text) == ""
        stored = (await store.load()).items
        assert f"{KEYS_PREFIX}{made.key.key_id}" in stored
        secret = made.text.encode()[len("as_12345678_") :]
        assert not any(secret in value for value in stored.values())
        listed = await keys.ListKeys(pb.ListKeysRequest(tenant="acme"), metadata=AS_ADMIN)
        assert list(listed.keys) == [made.key]


async def test_a_key_is_durable_and_so_is_its_end() -> None:
    store = MemoryStore()
    async with served(store) as (_, keys):
        live, ended = await create(keys), await create(keys)
        await keys.RevokeKey(pb.RevokeKeyRequest(key_id=ended.key.key_id), metadata=AS_ADMIN)
    async with served(store) as (plane, _):
        assert await opens(plane, live.text) == ""
        assert await opens(plane, ended.text) == "KEY_REVOKED"
        assert not any(row.role is not Role.CLIENT for row in plane.plane.api_keys.keys if row not in _given())
    # Tokens of parts come from their file only.
    async with guarded(None, store, two_ports=False) as plane:
        assert await opens(plane, ADMIN.text) == "UNKNOWN_KEY"


def _given() -> tuple[Any, ...]:
    return ADMIN.row, GATEWAY.row


async def test_revoking_twice_changes_nothing_and_a_given_token_is_not_revoked() -> None:
    async with served() as (_, keys):
        made = await create(keys)
        request = pb.RevokeKeyRequest(key_id=made.key.key_id)
        first = await keys.RevokeKey(request, metadata=AS_ADMIN)
        assert await keys.RevokeKey(request, metadata=AS_ADMIN) == first
        assert first.key.revoke_time.seconds > 0
        given = await refusal(keys.RevokeKey(pb.RevokeKeyRequest(key_id=ADMIN.row.key_id), metadata=AS_ADMIN))
        assert given.reason == "GIVEN_KEY"
        unknown = await refusal(keys.RevokeKey(pb.RevokeKeyRequest(key_id="nobodyss"), metadata=AS_ADMIN))
        assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")


async def test_a_watcher_gets_all_client_keys_and_then_each_change() -> None:
    async with served() as (_, keys):
        before = await create(keys)
        await create(keys, tenant="", role=pb.ROLE_ADMIN)
        stream: Any = keys.WatchKeys(pb.WatchKeysRequest(), metadata=AS_GATEWAY, timeout=DEADLINE_S)
        first = await stream.read()
        assert (first.reset, first.more) == (True, False)
        assert [(each.key, each.sha256) for each in first.changed] == [(before.key, hash_of(before.text))]
        after = await create(keys)
        second = await stream.read()
        assert (second.reset, [each.key.key_id for each in second.changed]) == (False, [after.key.key_id])
        ended = await keys.RevokeKey(pb.RevokeKeyRequest(key_id=before.key.key_id), metadata=AS_ADMIN)
        third = await stream.read()
        assert [each.key for each in third.changed] == [ended.key]
        stream.cancel()


async def test_a_set_of_many_keys_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentserving_controlplane.api.key.MAX_TOGETHER", 2)
    async with served() as (plane, keys):
        for _ in range(5):
            plane.plane.api_keys.keys.put(a_key("acme").row)
        stream: Any = keys.WatchKeys(pb.WatchKeysRequest(), metadata=AS_GATEWAY, timeout=DEADLINE_S)
        parts = [await stream.read() for _ in range(3)]
        assert [(part.reset, part.more, len(part.changed)) for part in parts] == [
            (True, True, 2), (False, True, 2), (False, False, 1),
        ]  # fmt: skip
        stream.cancel()


async def test_revocation_ends_the_open_streams_of_the_key_and_no_others() -> None:
    async with served() as (plane, keys):
        ends, stays = await create(keys), await create(keys)
        calls = call_service_pb2_grpc.CallServiceStub(await plane.parts())
        watches = [
            calls.WatchEndings(call_service_pb2.WatchEndingsRequest(), metadata=bearer(made.text), timeout=DEADLINE_S)
            for made in (ends, stays)
        ]
        for watch in watches:
            await watch.read()
        await keys.RevokeKey(pb.RevokeKeyRequest(key_id=ends.key.key_id), metadata=AS_ADMIN)
        ended = await refusal(watches[0].read())
        assert (ended.code, ended.reason) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_REVOKED")
        assert not watches[1].done()
        watches[1].cancel()


async def test_expiry_ends_open_streams_too() -> None:
    key = a_key("acme", lifetime_s=3600)
    async with guarded(None, two_ports=False, bootstrap_keys=(key.row,)) as plane:
        calls = call_service_pb2_grpc.CallServiceStub(await plane.parts())
        request = call_service_pb2.WatchEndingsRequest()
        watch: Any = calls.WatchEndings(request, metadata=bearer(key.text), timeout=DEADLINE_S)
        await watch.read()
        plane.plane.api_keys.keys.put(msgspec.structs.replace(key.row, expires_unix_s=int(time.time()) - 1))
        plane.plane.api_keys.tick()
        ended = await refusal(watch.read())
        assert (ended.code, ended.reason) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_EXPIRED")


async def test_a_repeated_request_gets_the_same_key() -> None:
    async with served() as (_, keys):
        made = await create(keys, idempotency_key="one")
        assert await create(keys, idempotency_key="one") == made
        other = await refusal(create(keys, tenant="globex", idempotency_key="one"))
        assert (other.code, other.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")
        assert (await create(keys)).key.key_id != made.key.key_id


@asynccontextmanager
async def leader(store: MemoryStore) -> AsyncIterator[ControlPlane]:
    plane = ControlPlane(SETTINGS, store, await store.acquire("t"), lambda error: None, AccessOptions())
    await plane.recover(store)
    yield plane
    await plane.commits.close(1)


async def test_another_leader_names_the_key_that_a_repeated_request_made() -> None:
    store = MemoryStore()
    request = CreateKey(role=Role.CLIENT, tenant=ACME, idempotency_key="one", caller="me")
    async with leader(store) as plane:
        made = await plane.api_keys.create(request)
        # Revoking it writes the row again, with what recognises the request.
        await plane.api_keys.revoke(made.row.key_id)
    async with leader(store) as plane:
        with pytest.raises(ExistsError, match=made.row.key_id) as caught:
            await plane.api_keys.create(request)
        assert caught.value.reason == "KEY_EXISTS"
        await plane.api_keys.create(msgspec_replace(request, caller="another"))


def msgspec_replace(request: CreateKey, **fields: Any) -> CreateKey:
    return CreateKey(**{name: getattr(request, name) for name in CreateKey.__dataclass_fields__} | fields)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tenant": ""}, "tenant"), ({"role": Role.ADMIN}, "tenant"), ({"name": "n" * 129}, "name"),
        ({"lifetime_s": 59.0}, "lifetime"), ({"lifetime_s": 1e12}, "lifetime"), ({"role": Role.SIDECAR}, "role"),
    ],
)  # fmt: skip
async def test_an_impossible_key_is_refused_by_field(fields: dict[str, Any], field: str) -> None:
    async with leader(MemoryStore()) as plane:
        with pytest.raises(InvalidError) as caught:
            await plane.api_keys.create(CreateKey(**{"role": Role.CLIENT, "tenant": ACME, **fields}))
        assert caught.value.field == field
        assert len(plane.api_keys.keys) == 0


async def test_a_lifetime_of_nothing_is_no_key_for_ever() -> None:
    async with served() as (_, keys):
        for lifetime in (Duration(), Duration(seconds=-1)):
            assert (await refusal(create(keys, lifetime=lifetime))).field == "lifetime"
        made = await create(keys, lifetime=Duration(seconds=3600))
        assert made.key.expire_time.seconds - made.key.create_time.seconds in (3599, 3600, 3601)
        assert (await refusal(create(keys, tenant="no such/tenant"))).field == "tenant"


async def test_keys_have_a_maximum_for_each_tenant_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_operations, "MAX_KEYS_OF_TENANT", 2)
    monkeypatch.setattr(key_operations, "MAX_KEYS", 3)
    async with leader(MemoryStore()) as plane:
        for tenant in ("acme", "acme", "globex"):
            await plane.api_keys.create(CreateKey(role=Role.CLIENT, tenant=Tenant(tenant)))
        for tenant, what in (("acme", "a cluster"), ("globex", "a cluster")):
            with pytest.raises(OverloadedError, match=what):
                await plane.api_keys.create(CreateKey(role=Role.CLIENT, tenant=Tenant(tenant)))
        monkeypatch.setattr(key_operations, "MAX_KEYS", 10)
        with pytest.raises(OverloadedError, match="a tenant"):
            await plane.api_keys.create(CreateKey(role=Role.CLIENT, tenant=ACME))


async def test_rows_of_keys_that_ended_long_ago_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    async with leader(store) as plane:
        made = await plane.api_keys.create(CreateKey(role=Role.CLIENT, tenant=ACME))
        await plane.api_keys.revoke(made.row.key_id)
        version = plane.api_keys.changes_since(0).version
        plane.api_keys.tick()
        with pytest.raises(KeyRefusedError) as caught:
            plane.api_keys.keys.verify(made.text, time.time())
        assert caught.value.reason is KeyRefusal.KEY_REVOKED
        monkeypatch.setattr(key_operations, "RETENTION_S", -10)
        plane.api_keys.tick()
        assert plane.api_keys.changes_since(version).removed == [made.row.key_id]
        with pytest.raises(KeyRefusedError) as caught:
            plane.api_keys.keys.verify(made.text, time.time())
        assert caught.value.reason is KeyRefusal.UNKNOWN_KEY
        await plane.commits.flush()
        assert not [key for key in (await store.load()).items if key.startswith(KEYS_PREFIX)]


async def test_a_watcher_that_missed_too_much_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_operations, "MAX_KEYS", 3)
    async with leader(MemoryStore()) as plane:
        keys = plane.api_keys
        version = keys.changes_since(0).version
        made = [await keys.create(CreateKey(role=Role.CLIENT, tenant=ACME)) for _ in range(3)]
        assert len(keys.changes_since(version).changed) == 3
        keys.keys.remove(made[0].row.key_id)
        await keys.create(CreateKey(role=Role.CLIENT, tenant=ACME))
        news = keys.changes_since(version)
        assert (news.reset, len(news.changed)) == (True, 3)
        assert not keys.changes_since(news.version).changed


async def test_a_row_that_cannot_be_read_keeps_no_one_else_out() -> None:
    store = MemoryStore()
    async with leader(store) as plane:
        made = await plane.api_keys.create(CreateKey(role=Role.CLIENT, tenant=ACME))
        plane.commits.put_together([Write(f"{KEYS_PREFIX}broken00", b"\xff{")])
    async with leader(store) as plane:
        assert plane.api_keys.keys.verify(made.text, time.time()).tenant == "acme"


async def test_pages_list_every_key_once() -> None:
    async with served() as (plane, keys):
        rows = [a_key("acme").row for _ in range(7)]
        for row in rows:
            plane.plane.api_keys.keys.put(row)
        found, token = [], ""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                page = await keys.ListKeys(
                    pb.ListKeysRequest(tenant="acme", page_size=3, page_token=token), metadata=AS_ADMIN
                )
                found += [each.key_id for each in page.keys]
                token = page.next_page_token
                if not token:
                    break
        assert found == sorted(row.key_id for row in rows)
        assert (
            await refusal(keys.ListKeys(pb.ListKeysRequest(page_size=1001), metadata=AS_ADMIN))
        ).field == "page_size"
