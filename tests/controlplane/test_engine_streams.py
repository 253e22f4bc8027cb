"""The order of an engine's messages, and reports with extreme or impossible numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agentserving.contract.ids import CallId, EngineId
from agentserving.v1 import admin_service_pb2, call_service_pb2, engine_service_pb2, program_service_pb2, types_pb2
from agentserving_controlplane.engines import links
from agentserving_controlplane.engines.directives import CancelCalls
from agentserving_controlplane.metrics import Collector, exposition
from agentserving_controlplane.table import rows
from agentserving_controlplane.table.reports import MAX_COUNTER
from controlplane.table_builders import key
from grpc import StatusCode
from prometheus_client import CollectorRegistry, generate_latest
from support.served_plane import PlayedEngine, ServedPlane, refusal, until_end

MAX = 2**63 - 1


@pytest.fixture
async def served() -> AsyncIterator[ServedPlane]:
    async with ServedPlane() as plane:
        yield plane


async def test_a_report_before_hello_is_refused(served: ServedPlane) -> None:
    engine = PlayedEngine(served.engine_service)
    await engine.say(report=engine_service_pb2.Report(seq=1))
    refused = await refusal(until_end(engine.stream))
    assert (refused.code, refused.reason) == (StatusCode.FAILED_PRECONDITION, "HELLO_FIRST")


@pytest.mark.parametrize(
    ("hello", "code", "reason"),
    [
        ({"engine_id": ""}, StatusCode.INVALID_ARGUMENT, "BAD_ENGINE_ID"),
        ({"engine_id": "x" * 129}, StatusCode.INVALID_ARGUMENT, "BAD_ENGINE_ID"),
        ({"boot_id": ""}, StatusCode.INVALID_ARGUMENT, "BAD_ENGINE_ID"),
        ({"epoch": MAX}, StatusCode.UNAVAILABLE, "NOT_LEADER"),
    ],
)
async def test_a_hello_that_cannot_be_is_refused(
    served: ServedPlane, hello: dict[str, Any], code: StatusCode, reason: str
) -> None:
    refused = await refusal(PlayedEngine(served.engine_service).hello(**hello))
    assert (refused.code, refused.reason) == (code, reason)


async def test_an_engine_that_has_seen_a_later_leader_shows_that_the_store_went_back(served: ServedPlane) -> None:
    await served.attach("e1")
    assert b"agentserving_store_went_back 0.0" in exposition(served.plane)
    await refusal(PlayedEngine(served.engine_service).hello("e2", epoch=served.plane.epoch + 1))
    assert b"agentserving_store_went_back 1.0" in exposition(served.plane)


async def test_hello_twice_is_a_renewal_but_not_of_another_engine(served: ServedPlane) -> None:
    engine = await served.attach("e1")
    assert (await engine.hello("e1", draining=True)).epoch == served.plane.epoch
    refused = await refusal(engine.hello("e2"))
    assert refused.reason == "ENGINE_CHANGED"


async def test_an_engine_that_comes_back_under_its_name_takes_programs_again(served: ServedPlane) -> None:
    engine = await served.attach("e1", "b1")
    await engine.hello("e1", "b1", draining=True)
    states = [
        engine.state for engine in (await served.admin.ListEngines(admin_service_pb2.ListEnginesRequest())).engines
    ]
    assert states == [types_pb2.ENGINE_STATE_DRAINING]
    await served.attach("e1", "b2")
    states = [
        engine.state for engine in (await served.admin.ListEngines(admin_service_pb2.ListEnginesRequest())).engines
    ]
    assert states == [types_pb2.ENGINE_STATE_READY]


async def test_an_engine_drained_by_an_administrator_stays_so_when_it_boots(served: ServedPlane) -> None:
    await served.attach("e1", "b1")
    await served.admin.DrainEngine(admin_service_pb2.DrainEngineRequest(engine_id="e1"))
    await served.attach("e1", "b2")
    states = [
        engine.state for engine in (await served.admin.ListEngines(admin_service_pb2.ListEnginesRequest())).engines
    ]
    assert states == [types_pb2.ENGINE_STATE_DRAINING]


async def test_a_second_stream_of_an_engine_ends_the_first(served: ServedPlane) -> None:
    first = await served.attach("e1")
    second = await served.attach("e1")
    refused = await refusal(until_end(first.stream))
    assert (refused.code, refused.reason) == (StatusCode.ABORTED, "STREAM_ENDED")
    assert refused.retry_after_s == 1.0
    engines = (await served.admin.ListEngines(admin_service_pb2.ListEnginesRequest())).engines
    assert [e.state for e in engines] == [types_pb2.ENGINE_STATE_READY]
    second.stream.cancel()


async def test_an_engine_that_does_not_read_is_cut_off(served: ServedPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_QUEUED", 100)
    engine = await served.attach("e1")
    for number in range(100_000):
        if EngineId("e1") not in served.plane.links:
            break
        served.plane.links.send(EngineId("e1"), CancelCalls((CallId("x" * 1000),)))
        if number % 50 == 0:
            await asyncio.sleep(0.001)
    assert EngineId("e1") not in served.plane.links
    engine.stream.cancel()


async def test_absurd_reports_never_overflow_an_account(served: ServedPlane) -> None:
    await served.open("p")
    engine = await served.attach()
    numbers = dict.fromkeys(
        ("service_us", "wait_us", "prompt_tokens", "cached_tokens", "output_tokens", "attained_service_us"), MAX
    )
    for seq in range(1, 21):
        await engine.report(await served.admit("p"), seq, **numbers, preemptions=2**32 - 1, level=2**32 - 1, outcome=99)
    row = await served.get("p")
    assert row.total_service_us == row.attained_service_us == 20 * MAX_COUNTER
    (stored,) = (await served.store.load(rows.ROWS_PREFIX)).items.values()
    assert rows.decode(stored).calls_completed == 20
    registry = CollectorRegistry()
    registry.register(Collector(served.plane, {}))
    assert b'agentserving_calls_completed_total{outcome="failed"} 20.0' in generate_latest(registry)
    assert (await served.admit("p", prompt_tokens=MAX)).call_id


async def test_sums_stop_below_what_the_wire_can_carry(served: ServedPlane) -> None:
    await served.open("p")
    engine = await served.attach()
    row = served.plane.table.rows[key("p")]
    row.attained_service_us = row.total_service_us = row.prompt_tokens = rows.MAX_SUM - 1
    await engine.report(await served.admit("p"), 1, service_us=50, prompt_tokens=50, outcome=1)
    program = await served.get("p")
    assert program.attained_service_us == program.total_service_us == program.prompt_tokens == rows.MAX_SUM


@pytest.mark.parametrize(
    "fields",
    [
        {"service_us": -1},
        {"cached_tokens": -(2**63)},
        {"call_id": "p.1." + "9" * 5000},
        {"call_id": "p.01.0"},
        {"call_id": ""},
        {"program_id": "another"},
        {"tenant": "another"},
    ],
)
async def test_a_report_that_makes_no_sense_changes_nothing_and_is_acknowledged(
    served: ServedPlane, fields: dict[str, Any]
) -> None:
    await served.open("p")
    engine = await served.attach()
    await engine.report(await served.admit("p"), 1, **{"service_us": 5, "outcome": 1, **fields})
    assert (await served.get("p")).calls_completed == 0
    assert served.plane.table.totals.reports_ignored == 1


async def test_calls_of_an_earlier_boot_wait_for_the_reports_that_are_still_to_come(served: ServedPlane) -> None:
    await served.open("p")
    engine = await served.attach(boot_id="b1")
    reported, silent = await served.admit("p"), await served.admit("p")
    await engine.report(reported, service_us=3)
    await engine.report(silent, seq=6, service_us=4)
    engine.stream.cancel()
    engine = await served.attach(boot_id="b2", unacked_seq=7)
    assert len((await served.get("p")).calls) == 2
    await engine.report(reported, seq=7, service_us=100, outcome=1)
    row = await served.get("p")
    assert not row.calls
    assert (row.calls_completed, row.total_service_us) == (2, 104)


async def test_a_call_ended_by_a_client_and_reported_after_all_is_charged(served: ServedPlane) -> None:
    await served.open("p")
    engine = await served.attach()
    admitted = await served.admit("p")
    for _ in range(2):
        await served.calls.EndCall(call_service_pb2.EndCallRequest(call_id=admitted.call_id, never_started=True))
    assert not (await served.get("p")).calls
    for seq in (1, 2):
        await engine.report(admitted, seq, service_us=9, outcome=2)
    row = await served.get("p")
    assert (row.calls_completed, row.total_service_us) == (1, 9)


async def test_an_engine_that_comes_back_learns_what_was_cancelled_and_where_accounts_stand(
    served: ServedPlane,
) -> None:
    await served.open("p")
    engine = await served.attach()
    ended, running = await served.admit("p"), await served.admit("p")
    await engine.report(ended, 1, service_us=11, outcome=1)
    engine.stream.cancel()
    while served.plane.engines.engines["e1"].attached:
        await served.get("p")
    await served.programs.CancelProgram(program_service_pb2.CancelProgramRequest(program_id="p"))
    engine = await served.attach()
    # In either order: neither depends on its place.
    found: dict[str, Any] = {}
    while len(found) < 2:
        directive = (await engine.hear("directive")).directive
        kind = directive.WhichOneof("directive")
        if kind in ("accounts", "cancel"):
            found[kind] = directive
    accounts = found["accounts"].accounts.accounts
    assert [(a.root_program_id, a.attained_service_us) for a in accounts] == [("p", 11)]
    assert list(found["cancel"].cancel.call_ids) == [running.call_id]
