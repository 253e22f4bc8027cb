"""JWTs at a control plane with TLS: a client of the claim's tenant, never more; streams end with their token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from agentserving.v1 import key_service_pb2, key_service_pb2_grpc, program_service_pb2_grpc
from agentserving.v1 import program_service_pb2 as program
from agentserving_process.web_tokens.watch import TokenOptions
from controlplane.guarded_plane import GuardedPlane, Metadata, bearer, guarded
from structlog.testing import capture_logs
from support.eventually import DEADLINE_S
from support.served_plane import Refusal, refusal, until_end
from support.token_issuer import AUDIENCE, EC_KEY, ISSUER, RSA_KEY, hmac_by_public_key, jwk, jwks, replace, token


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "jwks.json"
    found.write_bytes(jwks(jwk(RSA_KEY, "rsa-1"), jwk(EC_KEY, "ec-1")))
    return found


@pytest_asyncio.fixture
async def served(tmp_path: Path, file: Path) -> AsyncIterator[GuardedPlane]:
    tokens = TokenOptions(
        jwt_issuer=ISSUER, jwt_audience=(AUDIENCE,), jwt_jwks_file=str(file), jwt_leeway_s=0.0
    )  # fmt: skip
    async with guarded(tmp_path, tokens=tokens) as made:
        yield made


async def programs(served: GuardedPlane) -> program_service_pb2_grpc.ProgramServiceStub:
    return program_service_pb2_grpc.ProgramServiceStub(await served.clients())


async def opened(served: GuardedPlane, metadata: Metadata, program_id: str) -> Any:
    request = program.OpenProgramRequest(program_id=program_id)
    return await (await programs(served)).OpenProgram(request, metadata=metadata, timeout=DEADLINE_S)


async def test_a_token_is_a_client_of_its_tenant_and_sees_no_other(served: GuardedPlane) -> None:
    text = token(tenant="acme")
    mine, theirs = bearer(text), bearer(token(tenant="globex", key=EC_KEY, kid="ec-1", alg="ES256"))
    stub = await programs(served)
    with capture_logs() as logs:
        await opened(served, mine, "p")
        for metadata, expected in ((mine, ["p"]), (theirs, [])):
            listed = await stub.ListPrograms(program.ListProgramsRequest(), metadata=metadata, timeout=DEADLINE_S)
            assert [each.program_id for each in listed.programs] == expected
        claim = (*theirs, ("x-agentserving-tenant", "acme"))
        assert (await refusal(stub.ListPrograms(program.ListProgramsRequest(), metadata=claim))).reason == (
            "FOREIGN_TENANT"
        )
    by = {(line["who"], line["tenant"], line["method"]) for line in logs if line["event"] == "audit"}
    assert ("jwt:rsa-1:ci-bot", "acme", "ProgramService.OpenProgram") in by
    assert ("jwt:ec-1:ci-bot", "globex", "ProgramService.ListPrograms") in by
    assert text not in repr(logs)


@pytest.mark.parametrize(
    ("text_of", "reason"),
    [
        (lambda: token(aud="x"), "WRONG_AUDIENCE"),
        (lambda: token(now_unix_s=time.time() - 7200), "TOKEN_EXPIRED"),
        (lambda: token(kid="x"), "UNKNOWN_SIGNING_KEY"),
        (hmac_by_public_key, "ALGORITHM_NOT_ALLOWED"),
        (lambda: token(role="admin", tenant=""), "NO_TENANT"),
    ],
)
async def test_a_bad_token_opens_no_port(served: GuardedPlane, text_of: Callable[[], str], reason: str) -> None:
    # Made when it is used: the suite takes longer than it is valid.
    text = text_of()
    for channel in (await served.clients(), await served.parts(certificate=True)):
        stub = program_service_pb2_grpc.ProgramServiceStub(channel)
        found = await refusal(stub.ListPrograms(program.ListProgramsRequest(), metadata=bearer(text)))
        assert (found.code, found.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)


async def test_no_claim_makes_a_client_an_administrator(served: GuardedPlane) -> None:
    for said in ({"role": "admin"}, {"roles": ["admin"]}, {"scope": "admin"}):
        for channel in (await served.clients(), await served.parts(certificate=True)):
            keys = key_service_pb2_grpc.KeyServiceStub(channel)
            found: Refusal = await refusal(
                keys.ListKeys(key_service_pb2.ListKeysRequest(), metadata=bearer(token(**said)))
            )
            assert (found.code, found.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")


async def watching(served: GuardedPlane, metadata: Metadata) -> Any:
    """An open stream."""
    stub = await programs(served)
    stream = stub.WatchPrograms(program.WatchProgramsRequest(), metadata=metadata, timeout=DEADLINE_S)
    read = asyncio.create_task(stream.read())
    # It streams what changes after it has begun, and does not say when that is.
    while not read.done():
        await opened(served, metadata, f"p-{time.monotonic_ns()}")
    assert read.result() is not grpc.aio.EOF
    return stream


async def test_a_stream_ends_when_its_token_expires(served: GuardedPlane) -> None:
    stream = await watching(served, bearer(token(exp=int(time.time()) + 3)))
    found = await refusal(until_end(stream))
    assert (found.code, found.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")


async def test_streams_end_when_the_key_of_their_token_is_withdrawn(served: GuardedPlane, file: Path) -> None:
    gone = await watching(served, bearer(token()))
    stays = await watching(served, bearer(token(key=EC_KEY, kid="ec-1", alg="ES256")))
    replace(file, jwks(jwk(EC_KEY, "ec-1")))
    assert served.tokens is not None
    served.tokens.look()
    assert (await refusal(until_end(gone))).reason == "UNKNOWN_SIGNING_KEY"
    await opened(served, bearer(token(key=EC_KEY, kid="ec-1", alg="ES256")), "another")
    assert await stays.read() is not grpc.aio.EOF
    stays.cancel()
