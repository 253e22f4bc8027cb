"""Which class of service a program gets: from what is asked for, the key, the tenant, and the cluster's default."""

from __future__ import annotations

from typing import Any

import grpc
import msgspec
import pytest
from agentserving.contract.keys import decode_row, encode_row
from agentserving.contract.service_class import (
    SERVICE_CLASSES,
    SERVICE_WORDS,
    ServiceClass,
    exceeds,
    granted,
    read_service_class,
)
from agentserving.contract.ticket import IssuerKeys, verify
from agentserving.v1 import (
    call_service_pb2,
    call_service_pb2_grpc,
    program_service_pb2,
    program_service_pb2_grpc,
)
from agentserving.v1 import tenant_service_pb2 as tenant_pb
from agentserving.v1 import tenant_service_pb2_grpc as tenant_rpc
from agentserving.v1.types_pb2 import (
    SERVICE_CLASS_BATCH,
    SERVICE_CLASS_INTERACTIVE,
    SERVICE_CLASS_STANDARD,
    SERVICE_CLASS_UNSPECIFIED,
)
from agentserving_controlplane.metrics import exposition
from agentserving_controlplane.table import rows
from controlplane.guarded_plane import a_key, bearer, guarded
from hypothesis import given
from hypothesis import strategies as st
from support.served_plane import KEY, ServedPlane, refusal

INTERACTIVE, STANDARD, BATCH = SERVICE_CLASSES
NOTHING = ServiceClass.UNSPECIFIED
OPEN = program_service_pb2.OpenProgramRequest
some = st.sampled_from(SERVICE_CLASSES)
any_or_nothing = st.sampled_from(list(ServiceClass))


def of_ticket(text: str) -> int:
    return verify(text, IssuerKeys([KEY.public_key()]), engine_id="e1", now_unix_s=0).ticket.service_class


# -- pure ----------------------------------------------------------------------------------------------------------


@given(asked=any_or_nothing, limit=any_or_nothing, default=some)
def test_no_program_gets_a_better_class_than_its_client_may_use(
    asked: ServiceClass, limit: ServiceClass, default: ServiceClass
) -> None:
    found = granted(asked, limit, default)
    assert found in SERVICE_CLASSES
    assert found >= limit
    assert found == asked or not asked or exceeds(asked, limit)
    assert asked or limit or found is default


@pytest.mark.parametrize("word", [*SERVICE_WORDS, "Batch", " standard ", ""])
def test_a_word_names_its_class(word: str) -> None:
    assert read_service_class(word).label == word.strip().lower()


@pytest.mark.parametrize("word", ["bulk", "3", "unspecified"])
def test_another_word_is_refused_with_the_words_there_are(word: str) -> None:
    with pytest.raises(ValueError, match="use interactive, standard or batch"):
        read_service_class(word)


def test_rows_of_a_version_without_classes_are_standard_and_keys_unlimited() -> None:
    row = rows.ProgramRow(program_id=rows.ProgramId("p"), tenant=rows.Tenant("t"), open_us=1)
    assert b"service_class" not in rows.encode(row)
    assert rows.decode(rows.encode(row)).service_class is STANDARD
    batch = msgspec.structs.replace(row, service_class=BATCH)
    assert rows.decode(rows.encode(batch)).service_class is BATCH
    stored = msgspec.json.decode(encode_row(a_key("acme").row))
    del stored["service_class"]
    assert decode_row(msgspec.json.encode(stored)).service_class is NOTHING


# -- a served control plane ----------------------------------------------------------------------------------------


async def limit_tenant(plane: ServedPlane, service_class: Any, tenant: str = "default") -> tenant_pb.Tenant:
    said = tenant_pb.Tenant(tenant=tenant, service_class=service_class)
    stub: Any = tenant_rpc.TenantServiceStub(plane.channel)
    answer: tenant_pb.SetTenantResponse = await stub.SetTenant(tenant_pb.SetTenantRequest(tenant=said))
    return answer.tenant


async def test_a_program_has_the_class_that_opened_it_and_its_calls_carry_it_to_engines() -> None:
    async with ServedPlane() as plane:
        await plane.attach()
        assert (await plane.open("plain")).service_class == SERVICE_CLASS_STANDARD
        assert (await plane.open("nightly", service_class=SERVICE_CLASS_BATCH)).service_class == SERVICE_CLASS_BATCH
        assert of_ticket((await plane.admit("plain")).ticket) == STANDARD
        assert of_ticket((await plane.admit("nightly")).ticket) == BATCH
        # Asking again changes nothing: a tree is not torn apart in the middle of its run.
        again = await plane.admit("nightly", service_class=SERVICE_CLASS_INTERACTIVE)
        assert of_ticket(again.ticket) == BATCH
        implicit = await plane.admit("chat", implicit=True, service_class=SERVICE_CLASS_INTERACTIVE)
        assert of_ticket(implicit.ticket) == INTERACTIVE


async def test_a_sub_agent_has_its_roots_class_whatever_it_asks_for() -> None:
    async with ServedPlane() as plane:
        await plane.attach()
        await plane.open("root", service_class=SERVICE_CLASS_BATCH)
        child = await plane.open("child", parent="root", service_class=SERVICE_CLASS_INTERACTIVE)
        assert child.service_class == SERVICE_CLASS_BATCH
        call = await plane.admit(
            "grandchild", implicit=True, parent_program_id="child", service_class=SERVICE_CLASS_INTERACTIVE
        )
        assert of_ticket(call.ticket) == BATCH
        # The claim names a parent that is not open: both are opened with what the call asks for.
        call = await plane.admit(
            "worker", implicit=True, parent_program_id="new root", service_class=SERVICE_CLASS_BATCH
        )
        assert of_ticket(call.ticket) == BATCH


async def test_classes_and_limits_outlive_the_leader() -> None:
    async with ServedPlane() as plane:
        await plane.open("nightly", service_class=SERVICE_CLASS_BATCH)
        await limit_tenant(plane, SERVICE_CLASS_STANDARD)
        await plane.restart()
        assert (await plane.get("nightly")).service_class == SERVICE_CLASS_BATCH
        refused = await refusal(plane.open("p", service_class=SERVICE_CLASS_INTERACTIVE))
        assert refused.reason == "SERVICE_CLASS_NOT_PERMITTED"


async def test_a_tenants_class_is_the_best_that_its_clients_may_ask_for_and_what_they_get() -> None:
    async with ServedPlane() as plane:
        await plane.attach()
        assert (await limit_tenant(plane, SERVICE_CLASS_STANDARD)).service_class == SERVICE_CLASS_STANDARD
        refused = await refusal(plane.open("p", service_class=SERVICE_CLASS_INTERACTIVE))
        assert (refused.code, refused.field) == (grpc.StatusCode.PERMISSION_DENIED, "service_class")
        assert "at best standard" in refused.message
        assert "agentserving tenant set --service-class" in refused.message
        refused = await refusal(plane.admit("q", implicit=True, service_class=SERVICE_CLASS_INTERACTIVE))
        assert refused.reason == "SERVICE_CLASS_NOT_PERMITTED"
        assert not plane.plane.table.rows, "a refusal leaves no trace"
        assert (await plane.open("r", service_class=SERVICE_CLASS_BATCH)).service_class == SERVICE_CLASS_BATCH
        await limit_tenant(plane, SERVICE_CLASS_BATCH)
        assert (await plane.open("s")).service_class == SERVICE_CLASS_BATCH
        await limit_tenant(plane, SERVICE_CLASS_UNSPECIFIED)
        assert (await plane.open("t")).service_class == SERVICE_CLASS_STANDARD


async def test_a_gateways_client_may_use_what_both_its_key_and_its_tenant_permit() -> None:
    async with ServedPlane() as plane:
        await plane.attach()
        asks = {"implicit": True, "service_class": SERVICE_CLASS_INTERACTIVE}
        refused = await refusal(plane.admit("a", service_class_limit=SERVICE_CLASS_STANDARD, **asks))
        assert refused.reason == "SERVICE_CLASS_NOT_PERMITTED"
        plain = await plane.admit("b", implicit=True, service_class_limit=SERVICE_CLASS_INTERACTIVE)
        assert of_ticket(plain.ticket) == INTERACTIVE, "the key's class needs no header"
        await limit_tenant(plane, SERVICE_CLASS_BATCH)
        both = await plane.admit("c", implicit=True, service_class_limit=SERVICE_CLASS_INTERACTIVE)
        assert of_ticket(both.ticket) == BATCH


async def test_the_clusters_default_is_for_those_of_whom_nothing_is_said() -> None:
    async with ServedPlane(service_class=BATCH) as plane:
        assert (await plane.open("p")).service_class == SERVICE_CLASS_BATCH
        assert (await plane.open("q", service_class=SERVICE_CLASS_INTERACTIVE)).service_class == 1


async def test_an_unknown_number_is_refused() -> None:
    async with ServedPlane() as plane:
        for asked in (plane.open("p", service_class=9), plane.admit("p", implicit=True, service_class_limit=9)):
            refused = await refusal(asked)
            assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_SERVICE_CLASS")
        refused = await refusal(limit_tenant(plane, 9))
        assert refused.reason == "BAD_SERVICE_CLASS"


async def test_histograms_have_the_class_as_a_label() -> None:
    async with ServedPlane() as plane:
        engine = await plane.attach()
        call = await plane.admit("nightly", implicit=True, service_class=SERVICE_CLASS_BATCH)
        await engine.report(call, seq=1, outcome=1, service_us=10, output_tokens=1)
        text = exposition(plane.plane).decode()
    assert 'agentserving_call_wait_seconds_count{class="",service_class="batch",tenant="default"} 1.0' in text


# -- keys ----------------------------------------------------------------------------------------------------------


async def test_a_clients_key_bounds_what_it_asks_for_over_grpc() -> None:
    limited, free = a_key("acme"), a_key("acme")
    row = msgspec.structs.replace(limited.row, service_class=STANDARD)
    async with guarded(None, bootstrap_keys=(row, free.row)) as plane:
        channel = await plane.clients()
        programs: Any = program_service_pb2_grpc.ProgramServiceStub(channel)
        calls: Any = call_service_pb2_grpc.CallServiceStub(channel)
        asks = OPEN(program_id="p", service_class=SERVICE_CLASS_INTERACTIVE)
        refused = await refusal(programs.OpenProgram(asks, metadata=bearer(limited.text)))
        assert refused.reason == "SERVICE_CLASS_NOT_PERMITTED"
        call = call_service_pb2.AdmitCallRequest(program_id="p", implicit=True, service_class=SERVICE_CLASS_INTERACTIVE)
        refused = await refusal(calls.AdmitCall(call, metadata=bearer(limited.text)))
        assert refused.reason == "SERVICE_CLASS_NOT_PERMITTED"
        opened = await programs.OpenProgram(asks, metadata=bearer(free.text))
        assert opened.program.service_class == SERVICE_CLASS_INTERACTIVE
