"""Impossible input gets the right status, reason and field, and the server goes on serving."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from agentserving.contract.identity import Role
from agentserving.v1 import admin_service_pb2 as admin
from agentserving.v1 import call_service_pb2 as call
from agentserving.v1 import program_service_pb2 as program
from agentserving.v1 import types_pb2 as types
from controlplane.guarded_plane import a_key, bearer, guarded
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.served_plane import ServedPlane, refusal, until_end

MAX = 2**63 - 1
ADMIN = a_key(role=Role.ADMIN)


@pytest.fixture
async def served() -> AsyncIterator[ServedPlane]:
    async with ServedPlane() as plane:
        engine = await plane.attach(capabilities=types.EngineCapabilities(models=["tiny"]))
        await plane.open("p", idempotency_key="k")
        await plane.open("child", parent="p")
        await plane.open("closed")
        await plane.programs.CloseProgram(program.CloseProgramRequest(program_id="closed"))
        foreign = program.OpenProgramRequest(program_id="foreign")
        await plane.programs.OpenProgram(foreign, metadata=[("x-agentserving-tenant", "other")])
        yield plane
        # The server still serves.
        assert (await plane.admit("p")).engine_id == "e1"
        assert (await plane.get("p")).program_id == "p"
        engine.stream.cancel()


Case = Callable[[ServedPlane], Awaitable[Any]]


def open_(**fields: Any) -> Case:
    return lambda s: s.programs.OpenProgram(program.OpenProgramRequest(**fields))


def admit(**fields: Any) -> Case:
    return lambda s: s.calls.AdmitCall(call.AdmitCallRequest(**fields))


def listed(**fields: Any) -> Case:
    return lambda s: s.programs.ListPrograms(program.ListProgramsRequest(**fields))


def levels(*bounds: int, quantum: int = 5, last: int = 0) -> list[types.Level]:
    inner = [types.Level(upper_bound_us=b, quantum_us=quantum) for b in bounds]
    return [*inner, types.Level(upper_bound_us=last)]


def policy(**fields: Any) -> Case:
    given = {
        "name": "x", "accounting": types.ACCOUNTING_SUM, "order": types.ORDER_CALL_ARRIVAL, "levels": levels(5),
        "decision_interval_steps": 1, **fields,
    }  # fmt: skip
    return lambda s: s.admin.ApplyPolicy(admin.ApplyPolicyRequest(policy=types.Policy(**given)))


NOT_FOUND, INVALID = StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT
EXISTS, CONFLICT = StatusCode.ALREADY_EXISTS, StatusCode.FAILED_PRECONDITION
BAD = [
    (admit(program_id="nobody"), NOT_FOUND, "PROGRAM_NOT_FOUND", "program_id"),
    (admit(program_id="foreign"), NOT_FOUND, "PROGRAM_NOT_FOUND", "program_id"),
    (admit(program_id="p", tenant="other"), StatusCode.PERMISSION_DENIED, "FOREIGN_TENANT", "tenant"),
    (admit(program_id="closed"), CONFLICT, "PROGRAM_CLOSED", "program_id"),
    (admit(program_id="p", prompt_tokens=-1), INVALID, "NEGATIVE", "prompt_tokens"),
    (admit(program_id="p", prompt_tokens=-(2**63)), INVALID, "NEGATIVE", "prompt_tokens"),
    (admit(program_id="p", thread_id="x" * 129), INVALID, "BAD_THREAD_ID", "thread_id"),
    (admit(program_id="p", parent_call_ids=["p.1.0"] * 65), INVALID, "TOO_MANY_PARENTS", "parent_call_ids"),
    (admit(program_id="p", parent_call_ids=["nonsense"]), NOT_FOUND, "PARENT_CALL_NOT_FOUND", "parent_call_ids"),
    (admit(program_id="p", parent_call_ids=["child.1.0"]), NOT_FOUND, "PARENT_CALL_NOT_FOUND", "parent_call_ids"),
    (
        admit(program_id="p", parent_call_ids=["p.1." + "9" * 5000]),
        NOT_FOUND,
        "PARENT_CALL_NOT_FOUND",
        "parent_call_ids",
    ),
    (admit(program_id="p", parent_call_ids=["p.1.٣"]), NOT_FOUND, "PARENT_CALL_NOT_FOUND", "parent_call_ids"),
    (admit(program_id="p", model="gpt-9", exclude_engine_ids=[]), NOT_FOUND, "MODEL_NOT_FOUND", "model"),
    (admit(program_id="p", exclude_engine_ids=["e1"]), StatusCode.UNAVAILABLE, "NO_ENGINE", ""),
    (admit(program_id="p", idempotency_key="k" * 129), INVALID, "KEY_TOO_LONG", "idempotency_key"),
    (open_(program_id="p"), EXISTS, "PROGRAM_EXISTS", "program_id"),
    (open_(program_id="q", idempotency_key="k"), EXISTS, "IDEMPOTENCY_KEY_REUSED", "idempotency_key"),
    (open_(program_id="bad id"), INVALID, "BAD_PROGRAM_ID", "program_id"),
    (open_(program_id="x" * 129), INVALID, "BAD_PROGRAM_ID", "program_id"),
    (open_(name="ä" * 65), INVALID, "NAME_TOO_LONG", "name"),
    (open_(program_id="self", parent_program_id="self"), INVALID, "CYCLIC_PARENT", "parent_program_id"),
    (open_(parent_program_id="nobody"), NOT_FOUND, "PARENT_NOT_FOUND", "parent_program_id"),
    (open_(parent_program_id="foreign"), NOT_FOUND, "PARENT_NOT_FOUND", "parent_program_id"),
    (listed(page_size=1001), INVALID, "PAGE_TOO_LARGE", "page_size"),
    (listed(page_size=2**32 - 1), INVALID, "PAGE_TOO_LARGE", "page_size"),
    (listed(page_token="\x00 no token"), INVALID, "BAD_PAGE_TOKEN", "page_token"),
    (policy(levels=levels(5, 5)), INVALID, "BAD_POLICY", "policy.levels[1].upper_bound_us"),
    (policy(levels=levels(-(2**63))), INVALID, "BAD_POLICY", "policy.levels[0].upper_bound_us"),
    (policy(levels=levels(5, quantum=0)), INVALID, "BAD_POLICY", "policy.levels[0].quantum_us"),
    (policy(levels=levels(5, last=9)), INVALID, "BAD_POLICY", "policy.levels[1].upper_bound_us"),
    (policy(levels=levels(*range(1, 1000))), INVALID, "BAD_POLICY", "policy.levels"),
    (policy(levels=[]), INVALID, "BAD_POLICY", "policy.levels"),
    (policy(beta_milli=999), INVALID, "BAD_POLICY", "policy.beta_milli"),
    (policy(beta_milli=-1), INVALID, "BAD_POLICY", "policy.beta_milli"),
    (policy(unmanaged_level=2), INVALID, "BAD_POLICY", "policy.unmanaged_level"),
    (policy(decision_interval_steps=0), INVALID, "BAD_POLICY", "policy.decision_interval_steps"),
    (policy(accounting=99), INVALID, "BAD_POLICY", "policy.accounting"),
    (policy(order=0), INVALID, "BAD_POLICY", "policy.order"),
    (policy(name="n" * 200), INVALID, "BAD_POLICY", "policy.name"),
    (
        lambda s: s.admin.ApplyPolicy(admin.ApplyPolicyRequest(policy=types.Policy(name="no such preset"))),
        INVALID,
        "BAD_POLICY",
        "policy.name",
    ),
    (lambda s: s.admin.ApplyPolicy(admin.ApplyPolicyRequest(balancer=99)), INVALID, "BAD_BALANCER", "balancer"),
    (
        lambda s: s.admin.ApplyPolicy(admin.ApplyPolicyRequest(expected_version=7)),
        CONFLICT,
        "VERSION_MISMATCH",
        "",
    ),
    (
        lambda s: s.admin.DrainEngine(admin.DrainEngineRequest(engine_id="e9")),
        NOT_FOUND,
        "ENGINE_NOT_FOUND",
        "engine_id",
    ),
    (lambda s: s.calls.EndCall(call.EndCallRequest(call_id="nonsense")), NOT_FOUND, "CALL_NOT_FOUND", "call_id"),
    (
        lambda s: s.programs.CloseProgram(program.CloseProgramRequest(program_id="p", outcome=77)),
        INVALID,
        "BAD_OUTCOME",
        "outcome",
    ),
    (
        lambda s: s.programs.PauseProgram(program.PauseProgramRequest(program_id="closed")),
        CONFLICT,
        "PROGRAM_CLOSED",
        "program_id",
    ),
    (
        lambda s: s.programs.BeginToolWait(program.BeginToolWaitRequest(program_id="closed")),
        CONFLICT,
        "PROGRAM_CLOSED",
        "program_id",
    ),
    (
        lambda s: s.programs.BeginToolWait(program.BeginToolWaitRequest(program_id="p", expected_us=-5)),
        INVALID,
        "NEGATIVE",
        "expected_us",
    ),
    (
        lambda s: s.programs.GetProgram(
            program.GetProgramRequest(program_id="p"), metadata=[("x-agentserving-tenant", "no tenant!")]
        ),
        INVALID,
        "BAD_TENANT",
        "tenant",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("act", "code", "reason", "field"), BAD)
async def test_bad_requests_are_refused_with_reason_and_field(
    served: ServedPlane, act: Case, code: StatusCode, reason: str, field: str
) -> None:
    refused = await refusal(act(served))
    assert (refused.code, refused.reason, refused.field) == (code, reason, field)
    assert (refused.retry_after_s > 0) == (code is StatusCode.UNAVAILABLE)


async def test_absurd_but_possible_numbers_are_admitted(served: ServedPlane) -> None:
    for tokens in (2**62, MAX):
        assert (await served.admit("p", prompt_tokens=tokens)).call_id


@pytest.mark.parametrize(
    "service",
    ["ProgramService/OpenProgram", "CallService/AdmitCall", "CallService/Admissions", "EngineService/Attach"],
)
@pytest.mark.parametrize("data", [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b"\x12\x7f"])
async def test_malformed_bytes_end_their_call_only(served: ServedPlane, service: str, data: bytes) -> None:
    path = f"/agentserving.v1.{service}"
    if service.endswith(("Admissions", "Attach")):
        stream = served.channel.stream_stream(path)()
        await stream.write(data)
        refused = await refusal(until_end(stream))
        assert refused.reason == "MALFORMED_MESSAGE"
    else:
        refused = await refusal(served.channel.unary_unary(path)(data))
    assert refused.code in (StatusCode.INTERNAL, StatusCode.INVALID_ARGUMENT, StatusCode.UNKNOWN)


@pytest.mark.parametrize("service", ["ProgramService/OpenProgram", "CallService/AdmitCall", "KeyService/WatchKeys"])
async def test_malformed_requests_are_refused_by_name_once_it_is_known_who_asks(
    service: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = a_key(role=Role.GATEWAY)
    async with guarded(None, two_ports=False, bootstrap_keys=(ADMIN.row, gateway.row)) as plane:
        channel, path = await plane.parts(), f"/agentserving.v1.{service}"
        key = gateway if service.endswith("WatchKeys") else ADMIN
        for data in (b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f"):
            asked = channel.unary_stream if service.endswith("WatchKeys") else channel.unary_unary
            for metadata, code in ((bearer(key.text), StatusCode.INVALID_ARGUMENT), ((), StatusCode.UNAUTHENTICATED)):
                call = asked(path)(data, metadata=metadata)
                refused = await refusal(until_end(call) if service.endswith("WatchKeys") else call)
                assert refused.code == code
    assert not caplog.records, "no traceback for what a stranger has sent"


async def test_an_oversized_message_is_refused(served: ServedPlane) -> None:
    refused = await refusal(served.admit("p", model="x" * (17 << 20)))
    assert refused.code is StatusCode.RESOURCE_EXHAUSTED


async def test_a_bug_reveals_nothing_about_its_data(served: ServedPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    with monkeypatch.context() as patched:
        patched.setattr(served.plane, "describe", broken)
        refused = await refusal(served.get("p"))
    assert (refused.code, refused.reason) == (StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in refused.message


async def test_health_and_reflection_answer(served: ServedPlane) -> None:
    health = await health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    stream = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name for service in (await stream.read()).list_services_response.service}
    assert {f"agentserving.v1.{n}Service" for n in ("Program", "Call", "Engine", "Admin")} <= names
    stream.cancel()
