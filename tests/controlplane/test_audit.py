"""The audit log: each change and each refusal, with who and what, without secrets, and bounded."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from agentserving.contract.identity import ANONYMOUS, Role
from agentserving.v1 import admin_service_pb2, admin_service_pb2_grpc, program_service_pb2, program_service_pb2_grpc
from agentserving_controlplane.api.audit import BURST, MAX_CHARS, REFUSALS_PER_S, Audit, object_of
from controlplane.guarded_plane import a_key, bearer, guarded
from structlog.testing import capture_logs
from support.eventually import DEADLINE_S

ADMIN, CLIENT = a_key(role=Role.ADMIN), a_key("acme")


class Context:
    """What the audit log reads of an RPC."""

    def __init__(self, request_id: str = "") -> None:
        self._metadata = (("x-request-id", request_id),) if request_id else ()

    def invocation_metadata(self) -> Any:
        return self._metadata

    def peer(self) -> str:
        return "ipv4:10.0.0.1:4711"


def audited(logs: list[Any]) -> list[Any]:
    return [line for line in logs if line["event"] == "audit"]


async def test_a_change_a_failed_change_and_a_refusal_are_one_line_each_and_a_read_none() -> None:
    async with guarded(None, two_ports=False, bootstrap_keys=(ADMIN.row, CLIENT.row)) as plane:
        channel = await plane.parts()
        programs = program_service_pb2_grpc.ProgramServiceStub(channel)
        admin = admin_service_pb2_grpc.AdminServiceStub(channel)
        mine = (*bearer(CLIENT.text), ("x-request-id", "r-7"))
        with capture_logs() as logs:
            await programs.OpenProgram(program_service_pb2.OpenProgramRequest(program_id="p"), metadata=mine)
            await programs.ListPrograms(program_service_pb2.ListProgramsRequest(), metadata=mine)
            for sent in (
                programs.PauseProgram(program_service_pb2.PauseProgramRequest(program_id="none"), metadata=mine),
                admin.DrainEngine(admin_service_pb2.DrainEngineRequest(engine_id="e1"), metadata=mine),
                programs.CancelProgram(
                    program_service_pb2.CancelProgramRequest(program_id="p"),
                    metadata=bearer("as_stolen"),
                    timeout=DEADLINE_S,
                ),
            ):
                with pytest.raises(grpc.aio.AioRpcError):
                    await sent
        lines = audited(logs)
    key = CLIENT.row.key_id
    assert [(each["method"], each["object"], each["who"], each["role"], each["outcome"]) for each in lines] == [
        ("ProgramService.OpenProgram", "program/p", key, "client", "OK"),
        ("ProgramService.PauseProgram", "program/none", key, "client", "NOT_FOUND"),
        ("AdminService.DrainEngine", "engine/e1", key, "client", "PERMISSION_DENIED"),
        ("ProgramService.CancelProgram", "program/p", "", "anonymous", "UNAUTHENTICATED"),
    ]
    assert [each.get("reason", "") for each in lines] == ["", "", "NOT_ALLOWED", "UNKNOWN_KEY"]
    assert (lines[0]["tenant"], lines[0]["request_id"]) == ("acme", "r-7")
    assert all(each["peer"].startswith("ipv4:127.0.0.1:") for each in lines)
    written = json.dumps(logs)
    assert CLIENT.text not in written
    assert "as_stolen" not in written


def test_refusals_are_bounded_and_the_next_line_counts_the_others() -> None:
    audit = Audit()
    with capture_logs() as logs:
        for _ in range(1000):
            audit.refused(ANONYMOUS, "S.M", Context(), "UNAUTHENTICATED", "NO_CREDENTIAL", "", 100.0)
        audit.refused(ANONYMOUS, "S.M", Context(), "UNAUTHENTICATED", "NO_CREDENTIAL", "", 101.0)
    lines = audited(logs)
    assert len(lines) == BURST + 1
    assert lines[-1]["omitted"] == 1000 - BURST
    assert audit.refusals == {"NO_CREDENTIAL": 1001}
    assert REFUSALS_PER_S >= 1


def test_what_a_caller_sends_is_cut_and_no_control_character_gets_in() -> None:
    with capture_logs() as logs:
        long = program_service_pb2.OpenProgramRequest(program_id="p" * 5000)
        Audit().changed(ANONYMOUS, "S.M", Context("a\nb"), "OK", object_of(long), "t")
        Audit().changed(ANONYMOUS, "S.M", Context("x" * 65), "OK", "", "t")
    first, second = audited(logs)
    assert len(first["object"]) == MAX_CHARS
    assert (first["request_id"], second["request_id"]) == ("", "")
