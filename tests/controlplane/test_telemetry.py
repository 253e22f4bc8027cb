"""Spans of what has ended reach an OTLP receiver; one that is away costs nothing but spans."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agentserving.contract.phases import PhaseKind, PrefixMiss
from agentserving_cli.local.ports import free_ports
from agentserving_controlplane.metrics import exposition
from agentserving_controlplane.settings import TelemetryOptions, parse
from agentserving_controlplane.state import LeaderState
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.states import Outcome
from agentserving_controlplane.telemetry import wiring
from agentserving_controlplane.telemetry.feed import Feed
from aiohttp import web
from controlplane.table_builders import admit, at, key, open_program, report_of
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from support.eventually import eventually_async
from support.served_plane import ServedPlane

MS = 1000
PHASES = ((PhaseKind.QUEUE, 10 * MS), (PhaseKind.PREFILL, 20 * MS), (PhaseKind.DECODE, 30 * MS))
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Receiver:
    """A collector's OTLP/HTTP receiver."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.headers: dict[str, str] = {}
        self.status = 200
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.headers = dict(request.headers)
        assert request.content_type == "application/x-protobuf"
        if self.status == 200:
            self.requests.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(status=self.status, text="busy")

    @property
    def spans(self) -> list[Span]:
        return [
            s for r in self.requests for each in r.resource_spans for scope in each.scope_spans for s in scope.spans
        ]


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    made, app = Receiver(), web.Application()
    app.router.add_post("/v1/traces", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    (port,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    made.url = f"http://127.0.0.1:{port}/v1/traces"
    try:
        yield made
    finally:
        await runner.cleanup()


@asynccontextmanager
async def sending(state: LeaderState, url: str, **options: Any) -> AsyncIterator[None]:
    send = wiring.sender(TelemetryOptions(otlp_endpoint=url, **options), state)
    assert send is not None
    task = asyncio.create_task(send())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def run(table: ProcessTable, program: str, begin_ms: int, **fields: Any) -> str:
    """A call of 100 ms of which 60 are spent in the engine."""
    call = admit(table, program, now=begin_ms * MS, gateway_us=5 * MS, **fields)
    report = report_of(
        call, program, phases=PHASES, arrive_unix_us=(begin_ms + 7) * MS, prompt_tokens=100, cached_tokens=64,
        output_tokens=9, prefix_miss=PrefixMiss.EVICTED, common_tokens=96,
    )  # fmt: skip
    table.report(report, at((begin_ms + 100) * MS))
    return call.call_id


async def test_a_program_its_sub_agents_calls_phases_and_tools_are_one_trace() -> None:
    async with receiver() as collector, ServedPlane() as plane:
        table = plane.plane.table
        async with sending(plane.plane, collector.url, otlp_headers=("x-token=secret",)):
            root = open_program(table, "p", name="triage", now=1)
            sub = open_program(table, "p/sub", parent="p", now=2)
            call_id = run(table, "p", 1000)
            table.programs.begin_tool_wait(sub, "search", 0, at(1200 * MS))
            table.programs.end_tool_wait(sub, at(1300 * MS))
            table.programs.close(sub, Outcome.FAILED, at(1400 * MS))
            table.programs.close(root, Outcome.COMPLETED, at(1500 * MS))
            await eventually_async(lambda: len(collector.spans) >= 8, "all spans")
        assert 'agentserving_span_endings_total{result="sent"} 4.0' in exposition(plane.plane).decode()
    assert collector.headers["x-token"] == "secret"
    spans = {span.name: span for span in collector.spans}
    program, call = spans["invoke_agent triage"], spans["chat"]
    assert len({span.trace_id for span in spans.values()}) == 1
    assert len({span.span_id for span in spans.values()}) == len(collector.spans)
    assert not program.parent_span_id
    assert spans["invoke_agent"].parent_span_id == call.parent_span_id == program.span_id
    assert spans["execute_tool search"].parent_span_id == spans["invoke_agent"].span_id
    assert spans["invoke_agent"].status.code == Status.STATUS_CODE_ERROR
    at_ms = {
        name: (spans[name].start_time_unix_nano // 1_000_000, spans[name].end_time_unix_nano // 1_000_000)
        for name in ("chat", "gateway", "queue", "prefill", "decode")
    }
    assert at_ms == {
        "chat": (995, 1100), "gateway": (995, 1000), "queue": (1007, 1017), "prefill": (1017, 1037),
        "decode": (1037, 1067),
    }  # fmt: skip
    assert {spans[name].parent_span_id for name in ("gateway", "queue", "prefill", "decode")} == {call.span_id}
    found = attributes(call)
    assert found["gen_ai.usage.input_tokens"] == 100
    assert found["gen_ai.usage.output_tokens"] == 9
    assert found["gen_ai.conversation.id"] == "p"
    assert (found["agentserving.prefix"], found["agentserving.call.id"]) == ("evicted", call_id)


async def test_a_call_with_a_traceparent_belongs_to_its_clients_trace_and_is_linked_to_its_program() -> None:
    async with receiver() as collector, ServedPlane() as plane:
        table = plane.plane.table
        async with sending(plane.plane, collector.url):
            root = open_program(table, "p", name="triage", now=1)
            run(table, "p", 1000, trace_parent=f"00-{TRACE}-{PARENT}-00")
            run(table, "p", 2000, trace_parent=f"00-{TRACE}-{PARENT}-01")
            table.programs.close(root, Outcome.COMPLETED, at(3000 * MS))
            await eventually_async(lambda: any(s.name == "invoke_agent triage" for s in collector.spans), "the program")
    calls = [span for span in collector.spans if span.name == "chat"]
    program = next(span for span in collector.spans if span.name == "invoke_agent triage")
    # The client does not sample the first.
    assert [(call.trace_id.hex(), call.parent_span_id.hex()) for call in calls] == [(TRACE, PARENT)]
    assert [(link.trace_id, link.span_id) for link in calls[0].links] == [(program.trace_id, program.span_id)]


async def test_a_collector_that_refuses_or_is_away_loses_spans_and_nothing_else() -> None:
    async with receiver() as collector, ServedPlane() as plane:
        table, counts = plane.plane.table, plane.plane.span_counts
        collector.status = 503
        async with sending(plane.plane, collector.url):
            open_program(table, "p", now=1)
            run(table, "p", 1000)
            await eventually_async(lambda: counts["dropped"] == 1, "the batch is dropped")
            collector.status = 200
            run(table, "p", 2000)
            await eventually_async(lambda: counts["sent"] == 1, "the next batch")
        assert table.find(plane.plane.table.rows.copy().popitem()[0].tenant, "p").calls_completed == 2


def test_a_full_feed_drops_what_is_new_and_counts_it() -> None:
    feed = Feed({"sent": 0, "dropped": 0}, limit=2)
    for _ in range(5):
        feed.put("t", object())  # type: ignore[arg-type]
    assert (len(feed.take(10)), feed.counts["dropped"]) == (2, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--otlp-endpoint", "collector:4318"], "no http or https URL"), (["--otlp-headers", "token"], "name=value")],
)
def test_bad_options_are_refused_at_the_start(flags: list[str], message: str, capsys: Any, tmp_path: Any) -> None:
    key = tmp_path / "key"
    key.write_text("0" * 64)
    with pytest.raises(SystemExit):
        parse(["--ticket-key-file", str(key), *flags])
    assert message in capsys.readouterr().err


def test_without_an_endpoint_there_is_no_task() -> None:
    assert wiring.sender(TelemetryOptions(), object()) is None  # type: ignore[arg-type]


async def test_time_in_which_a_spent_budget_held_a_call_is_a_phase_of_it() -> None:
    async with receiver() as collector, ServedPlane() as plane:
        async with sending(plane.plane, collector.url):
            open_program(plane.plane.table, "p", now=1)
            table = plane.plane.table
            call = admit(table, "p", now=9_000 * MS, gateway_us=5_005 * MS, held_us=5_000 * MS)
            table.report(report_of(call, "p", phases=PHASES), at(9_100 * MS))
            plane.plane.wake()
            await eventually_async(lambda: len(collector.spans) >= 6, "all spans")
        assert table.rows[key("p")].times.held_us == 5_000 * MS
        assert table.rows[key("p")].times.gateway_us == 5 * MS
    by_name = {span.name: span for span in collector.spans}
    held, gateway, chat = by_name["held"], by_name["gateway"], by_name["chat"]
    nanos = 1_000_000
    assert (held.start_time_unix_nano, held.end_time_unix_nano) == (3_995 * nanos, 8_995 * nanos)
    assert (gateway.start_time_unix_nano, gateway.end_time_unix_nano) == (8_995 * nanos, 9_000 * nanos)
    assert chat.start_time_unix_nano == held.start_time_unix_nano
