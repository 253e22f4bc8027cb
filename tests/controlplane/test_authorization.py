"""Every RPC against every kind of caller, on a live control plane with TLS; and the table against the descriptors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from agentserving.contract.identity import Role
from agentserving.contract.ids import Tenant
from agentserving.contract.keys import NewKey
from agentserving.v1 import admin_service_pb2 as admin
from agentserving.v1 import call_service_pb2 as call
from agentserving.v1 import call_service_pb2_grpc, program_service_pb2_grpc
from agentserving.v1 import engine_service_pb2 as engine
from agentserving.v1 import key_service_pb2 as key
from agentserving.v1 import program_service_pb2 as program
from agentserving.v1 import stream_service_pb2 as stream
from agentserving.v1 import tenant_service_pb2 as tenant
from agentserving.v1 import types_pb2 as types
from agentserving_controlplane.__main__ import SERVICES
from agentserving_controlplane.api.authorization import RULES, access_to
from controlplane.guarded_plane import GuardedPlane, Metadata, a_key, bearer, guarded
from google.protobuf import symbol_database
from support.eventually import DEADLINE_S
from support.served_plane import Refusal

FILES = (admin, call, engine, key, program, stream, tenant)
PACKAGE = "agentserving.v1"
OWNER, OTHER, ADMIN = a_key("acme"), a_key("globex"), a_key(role=Role.ADMIN)
EXPIRED = a_key("acme", now_unix_s=time.time() - 100, lifetime_s=60)
REVOKED = NewKey((_live := a_key("acme")).text, msgspec.structs.replace(_live.row, revoked_unix_s=1))
KEYS = [each.row for each in (OWNER, OTHER, ADMIN, EXPIRED, REVOKED)]


def methods() -> dict[str, Any]:
    """All RPCs of the contract by `Service.Method`."""
    return {
        f"{service.name}.{method.name}": method
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def test_every_rpc_of_the_contract_is_classified_and_nothing_else_is() -> None:
    assert {f"{service}.{name}" for service, names in RULES.items() for name in names} == set(methods())
    assert {f"{PACKAGE}.{service}" for service in RULES} == set(SERVICES)


def test_an_rpc_that_is_not_classified_is_for_nobody() -> None:
    assert access_to("/agentserving.v1.ProgramService/Invented").roles == frozenset()


# Who may use an RPC, by hand: what the table of the product is compared with. `other` may use it as well, on its own
# tenant's objects: on those of `owner` it gets ELSEWHERE.
MAY = {
    "ProgramService.*": "owner other admin admin-key stranger-with-key",
    "CallService.*": "owner other admin admin-key stranger-with-key",
    "CallService.Admissions": "gateway",
    "EngineService.Attach": "sidecar",
    "StreamService.GetStreams": "gateway sidecar sidecar-of-another-engine",
    "AdminService.*": "operator admin",
    "KeyService.*": "operator admin",
    "KeyService.WatchKeys": "gateway",
    "TenantService.*": "operator admin",
}
UNKNOWN = {"no-key": "NO_CREDENTIAL", "expired": "KEY_EXPIRED", "revoked": "KEY_REVOKED", "stranger": "NO_CREDENTIAL",
           "foreign-cluster": "FOREIGN_CERTIFICATE"}  # fmt: skip
# Codes for `other`, which names the objects of `owner`; OK where an RPC names none, or opens its own.
ELSEWHERE = {
    "ProgramService.OpenProgram": "OK", "ProgramService.ListPrograms": "OK", "ProgramService.WatchPrograms":
    "OUT_OF_RANGE", "CallService.WatchEndings": "OK", "CallService.Generate": "UNIMPLEMENTED",
}  # fmt: skip
OWN = {"ProgramService.WatchPrograms": "OUT_OF_RANGE", "CallService.Generate": "UNIMPLEMENTED"}

CALLERS: dict[str, Callable[[GuardedPlane], Awaitable[tuple[grpc.aio.Channel, Metadata]]]] = {}


def caller(name: str) -> Callable[[Callable[[GuardedPlane], Awaitable[Any]]], None]:
    def add(made: Callable[[GuardedPlane], Awaitable[Any]]) -> None:
        CALLERS[name] = made

    return add


def _on_clients_port(name: str, metadata: Metadata) -> None:
    async def made(plane: GuardedPlane) -> tuple[grpc.aio.Channel, Metadata]:
        return await plane.clients(), metadata

    CALLERS[name] = made


def _on_parts_port(name: str, *roles: str, metadata: Metadata = (), **fields: str) -> None:
    async def made(plane: GuardedPlane) -> tuple[grpc.aio.Channel, Metadata]:
        return await plane.parts(*roles, **fields), metadata  # type: ignore[arg-type]

    CALLERS[name] = made


OWNERS = bearer(OWNER.text)
ACME = (("x-agentserving-tenant", "acme"),)
_on_clients_port("owner", bearer(OWNER.text))
_on_clients_port("other", bearer(OTHER.text))
_on_clients_port("no-key", ())
_on_clients_port("expired", bearer(EXPIRED.text))
_on_clients_port("revoked", bearer(REVOKED.text))
_on_clients_port("admin-key", (*bearer(ADMIN.text), *ACME))
_on_parts_port("gateway", "gateway")
_on_parts_port("sidecar", "sidecar/e1")
_on_parts_port("sidecar-of-another-engine", "sidecar/e2")
_on_parts_port("operator", "operator")
_on_parts_port("admin", "admin", metadata=ACME)
# Of etcd, or made before roles existed: signed by the CA, names none.
_on_parts_port("stranger")
_on_parts_port("stranger-with-key", metadata=bearer(OWNER.text))
_on_parts_port("foreign-cluster", "admin", cluster="ns/other")
_on_parts_port("two-roles", "admin", "gateway")
UNKNOWN["two-roles"] = "NO_CREDENTIAL"


class Requests:
    """A request of each RPC that its rightful caller succeeds with; objects it uses up are created again."""

    def __init__(self, plane: GuardedPlane) -> None:
        self._plane, self._count = plane, 0

    async def _send(self, name: str, request: Any, metadata: Metadata = OWNERS) -> Any:
        path = f"/{PACKAGE}.{name.replace('.', '/')}"
        response = symbol_database.Default().GetSymbol(methods()[name].output_type.full_name)
        channel = await self._plane.clients()
        sent = channel.unary_unary(path, type(request).SerializeToString, response.FromString)
        return await sent(request, metadata=metadata, timeout=DEADLINE_S)

    async def of(self, name: str) -> Any:
        method = name.partition(".")[2]
        kind = symbol_database.Default().GetSymbol(methods()[name].input_type.full_name)
        self._count += 1
        program_id = f"p{self._count}"
        if name == "ProgramService.OpenProgram":
            return kind(program_id=program_id)
        if name == "ProgramService.WatchPrograms":
            # Long before this control plane began: answered at once, with OUT_OF_RANGE.
            return kind(after_revision=1)
        if "program_id" in kind.DESCRIPTOR.fields_by_name and name != "CallService.Generate":
            await self._send("ProgramService.OpenProgram", program.OpenProgramRequest(program_id=program_id))
            return kind(program_id=program_id)
        match method:
            case "EndCall":
                admit = call.AdmitCallRequest()
                admitted = await self._send("CallService.AdmitCall", admit)
                return kind(call_id=admitted.call_id, never_started=True)
            case "Attach":
                hello = engine.EngineHello(engine_id="e1", boot_id="b", address="127.0.0.1:9")
                return kind(hello=hello)
            case "DrainEngine" | "UndrainEngine":
                return kind(engine_id="e1")
            case "ApplyPolicy":
                return kind(policy=types.Policy(name="fcfs"))
            case "SetTenant":
                return kind(tenant=tenant.Tenant(tenant="acme", weight=2))
            case "RemoveTenant":
                return kind(tenant="acme")
            case "CreateKey":
                return kind(tenant="acme", name="ci")
            case "RevokeKey":
                made = a_key("acme")
                self._plane.plane.api_keys.keys.put(made.row)
                return kind(key_id=made.row.key_id)
        return kind()


async def outcome(channel: grpc.aio.Channel, name: str, request: Any, metadata: Metadata) -> Refusal | None:
    """How an RPC ends, or its first answer comes: None = OK."""
    method = methods()[name]
    response = symbol_database.Default().GetSymbol(method.output_type.full_name)
    arguments = (f"/{PACKAGE}.{name.replace('.', '/')}", type(request).SerializeToString, response.FromString)
    try:
        if method.client_streaming:
            stream: Any = channel.stream_stream(*arguments)(metadata=metadata, timeout=DEADLINE_S)
            if name != "CallService.Admissions":
                await stream.write(request)
            await _first(stream)
        elif method.server_streaming:
            await _first(channel.unary_stream(*arguments)(request, metadata=metadata, timeout=DEADLINE_S))
        else:
            await channel.unary_unary(*arguments)(request, metadata=metadata, timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        return Refusal(error)
    except asyncio.InvalidStateError:
        # A write to a stream that has been refused already.
        await stream.read()
        raise AssertionError("the stream has no status") from None
    return None


async def _first(stream: Any) -> None:
    found = await stream.read()
    if found is grpc.aio.EOF:
        raise grpc.aio.AioRpcError(await stream.code(), grpc.aio.Metadata(), await stream.trailing_metadata())
    stream.cancel()


def may(name: str, who: str) -> bool:
    allowed = MAY.get(name) or MAY[f"{name.partition('.')[0]}.*"]
    return who in allowed.split()


def expected(name: str, who: str) -> tuple[str, str]:
    """(code, reason); reason "" = not compared."""
    if who in UNKNOWN:
        return "UNAUTHENTICATED", UNKNOWN[who]
    if not may(name, who):
        return "PERMISSION_DENIED", "NOT_ALLOWED"
    if who == "other":
        return ELSEWHERE.get(name, "NOT_FOUND"), ""
    return OWN.get(name, "OK"), ""


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[GuardedPlane]:
    async with guarded(tmp_path, bootstrap_keys=tuple(KEYS)) as served:
        yield served


async def answered(channel: grpc.aio.Channel, name: str, request: Any, metadata: Metadata) -> Refusal | None:
    """`outcome`, asked again where gRPC lost the server's words: on a busy machine the reset of a stream that is still
    written to may overtake the refusal (INTERNAL without a reason of ours)."""
    for _ in range(3):
        refused = await outcome(channel, name, request, metadata)
        if refused is None or refused.code is not grpc.StatusCode.INTERNAL or refused.reason:
            break
    return refused


async def test_every_rpc_answers_every_kind_of_caller_as_it_should(plane: GuardedPlane) -> None:
    requests = Requests(plane)
    attached: Any = (await plane.parts("sidecar/e1")).stream_stream(
        f"/{PACKAGE}.EngineService/Attach",
        engine.AttachRequest.SerializeToString,
        engine.AttachResponse.FromString,
    )()
    capabilities = types.EngineCapabilities(models=["tiny"], max_num_seqs=1000)
    hello = engine.EngineHello(engine_id="e1", boot_id="b", address="127.0.0.1:9", capabilities=capabilities)
    await attached.write(engine.AttachRequest(hello=hello))
    await attached.read()
    wrong = {}
    # Attach last: it replaces the engine that calls are admitted to.
    for name in sorted(methods(), key=lambda name: (name == "EngineService.Attach", name)):
        for who, made in CALLERS.items():
            channel, metadata = await made(plane)
            refused = await answered(channel, name, await requests.of(name), metadata)
            found = ("OK", "") if refused is None else (refused.code.name, refused.reason)
            code, reason = expected(name, who)
            if found[0] != code or (reason and found[1] != reason):
                wrong[(name, who)] = (found, (code, reason))
    assert not wrong
    assert plane.plane.policy.policy.name == "fcfs"


async def test_the_parts_port_completes_no_handshake_without_a_certificate(plane: GuardedPlane) -> None:
    channel = await plane.parts(certificate=False)
    sent = channel.unary_unary(f"/{PACKAGE}.ProgramService/ListPrograms")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await sent(b"", metadata=bearer(OWNER.text), timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_cannot_name_another_tenant(plane: GuardedPlane) -> None:
    channel = await plane.clients()
    request = program.ListProgramsRequest()
    refused = await outcome(channel, "ProgramService.ListPrograms", request, (*bearer(OTHER.text), *ACME))
    assert refused is not None
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "FOREIGN_TENANT")
    own = (("x-agentserving-tenant", "globex"),)
    assert await outcome(channel, "ProgramService.ListPrograms", request, (*bearer(OTHER.text), *own)) is None
    refused = await outcome(channel, "CallService.AdmitCall", call.AdmitCallRequest(tenant="acme"), bearer(OTHER.text))
    assert refused is not None
    assert refused.reason == "FOREIGN_TENANT"


async def test_a_gateway_names_the_tenant_of_each_call(plane: GuardedPlane) -> None:
    channel = await plane.parts("gateway")
    stream: Any = channel.stream_stream(
        f"/{PACKAGE}.CallService/Admissions",
        call.AdmissionsRequest.SerializeToString,
        call.AdmissionsResponse.FromString,
    )()
    await stream.read()
    admit = call.AdmitCallRequest(program_id="p", implicit=True)
    await stream.write(call.AdmissionsRequest(stream_id=1, admit=admit))
    assert (await stream.read()).error.reason == "BAD_TENANT"
    admit.tenant = "acme"
    await stream.write(call.AdmissionsRequest(stream_id=2, admit=admit))
    # No engine is attached: it got past the tenant.
    assert (await stream.read()).error.reason == "NO_ENGINE"


async def test_a_clients_word_that_its_call_never_started_makes_it_free_of_nothing(plane: GuardedPlane) -> None:
    attached: Any = (await plane.parts("sidecar/e1")).stream_stream(
        f"/{PACKAGE}.EngineService/Attach",
        engine.AttachRequest.SerializeToString,
        engine.AttachResponse.FromString,
    )()
    hello = engine.EngineHello(engine_id="e1", boot_id="b", address="127.0.0.1:9")
    await attached.write(engine.AttachRequest(hello=hello))
    await attached.read()
    calls = call_service_pb2_grpc.CallServiceStub(await plane.clients())
    opening = program_service_pb2_grpc.ProgramServiceStub(await plane.clients())
    await opening.OpenProgram(program.OpenProgramRequest(program_id="p"), metadata=OWNERS)
    admitted = await calls.AdmitCall(call.AdmitCallRequest(program_id="p"), metadata=OWNERS)
    await calls.EndCall(call.EndCallRequest(call_id=admitted.call_id, never_started=True), metadata=OWNERS)
    while (directive := (await attached.read()).directive).WhichOneof("directive") != "cancel":
        pass
    assert list(directive.cancel.call_ids) == [admitted.call_id]
    ran = engine.CallReport(
        call_id=admitted.call_id, attempt=1, program_id="p", tenant="acme", root_program_id="p", boot_id="b",
        service_us=7, outcome=types.OUTCOME_CANCELLED,
    )  # fmt: skip
    await attached.write(engine.AttachRequest(report=engine.Report(seq=1, calls=[ran])))
    while (await attached.read()).WhichOneof("message") != "ack":
        pass
    assert plane.plane.table.find(Tenant("acme"), "p").attained_service_us == 7
    attached.cancel()


async def test_without_certificates_the_same_rules_hold_on_one_port() -> None:
    sidecar, gateway = a_key(role=Role.SIDECAR, name="e1"), a_key(role=Role.GATEWAY)
    given = (*KEYS, sidecar.row, gateway.row)
    async with guarded(None, two_ports=False, bootstrap_keys=given) as served:
        channel = await served.parts()
        overview = admin.GetOverviewRequest()
        for text, name, request, code in (
            (OWNER.text, "AdminService.GetOverview", overview, "PERMISSION_DENIED"),
            (ADMIN.text, "AdminService.GetOverview", overview, "OK"),
            (gateway.text, "KeyService.WatchKeys", key.WatchKeysRequest(), "OK"),
            (OWNER.text, "KeyService.WatchKeys", key.WatchKeysRequest(), "PERMISSION_DENIED"),
            ("", "ProgramService.ListPrograms", program.ListProgramsRequest(), "UNAUTHENTICATED"),
        ):
            refused = await outcome(channel, name, request, bearer(text) if text else ())
            assert (refused.code.name if refused is not None else "OK") == code, name
