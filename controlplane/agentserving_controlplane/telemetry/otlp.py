"""Sends spans to a collector: OTLP over HTTP, binary protobuf. The one module of the control plane that speaks OTLP.

Specification: https://opentelemetry.io/docs/specs/otlp/. A batch that the collector does not take is dropped after one
more try: spans are for looking at, and the next ones matter more.
"""

from __future__ import annotations

import asyncio

import agentserving
import aiohttp
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from agentserving_controlplane.settings import TelemetryOptions
from agentserving_controlplane.table.endings import ClosedProgram, EndedCall
from agentserving_controlplane.telemetry.feed import Feed, Item
from agentserving_controlplane.telemetry.spans import Spans, add_call, add_program, add_tool_wait

log = structlog.get_logger()

INTERVAL_S = 1.0
# Endings turned into spans before other tasks run: about a millisecond of work. And of one request: about 0.5 MB.
PER_SLICE, PER_REQUEST = 25, 500
SEND_S = 5.0
# One line about failures in this time.
LOG_S = 60.0


class Exporter:
    """`run` is a supervised task of the leader."""

    def __init__(self, options: TelemetryOptions, feed: Feed) -> None:
        self._options, self._feed = options, feed
        self._resource = Resource(
            attributes=[
                _attribute("service.name", options.otlp_service_name),
                _attribute("service.version", agentserving.__version__),
            ]
        )
        self._scope = InstrumentationScope(name="agentserving", version=agentserving.__version__)
        self._logged_at: float | None = None

    async def run(self) -> None:
        """Sends what has ended, every INTERVAL_S, until it is cancelled."""
        timeout = aiohttp.ClientTimeout(total=SEND_S)
        async with aiohttp.ClientSession(timeout=timeout, headers=dict(self._options.headers)) as session:
            while True:
                await asyncio.sleep(INTERVAL_S)
                while items := self._feed.take(PER_REQUEST):
                    await self._export(session, items)

    async def _export(self, session: aiohttp.ClientSession, items: list[Item]) -> None:
        request = ExportTraceServiceRequest()
        resource = request.resource_spans.add(resource=self._resource)
        spans = resource.scope_spans.add(scope=self._scope).spans
        for begin in range(0, len(items), PER_SLICE):
            for item in items[begin : begin + PER_SLICE]:
                _add(spans, item)
            await asyncio.sleep(0)
        body = request.SerializeToString()
        error = await self._send(session, body)
        if error:
            await asyncio.sleep(INTERVAL_S)
            error = await self._send(session, body)
        if error:
            self._feed.counts["dropped"] += len(items)
            self._log(error)
        else:
            self._feed.counts["sent"] += len(items)

    async def _send(self, session: aiohttp.ClientSession, body: bytes) -> str:
        """What went wrong; "" when the collector has taken the batch."""
        headers = {"content-type": "application/x-protobuf"}
        try:
            async with session.post(self._options.otlp_endpoint, data=body, headers=headers) as response:
                if response.status < 300:
                    return ""
                return f"HTTP {response.status}: {(await response.text())[:200]}"
        except (aiohttp.ClientError, TimeoutError) as error:
            return str(error) or type(error).__name__

    def _log(self, error: str) -> None:
        now = asyncio.get_running_loop().time()
        if self._logged_at is None or now - self._logged_at >= LOG_S:
            self._logged_at = now
            log.warning(
                "the collector did not take spans, they are dropped: check --otlp-endpoint",
                endpoint=self._options.otlp_endpoint, dropped=self._feed.counts["dropped"], error=error,
            )  # fmt: skip


def _add(spans: Spans, item: Item) -> None:
    """All spans of an ending."""
    tenant, ended = item
    if isinstance(ended, EndedCall):
        add_call(spans, tenant, ended)
    elif isinstance(ended, ClosedProgram):
        add_program(spans, tenant, ended)
    else:
        add_tool_wait(spans, tenant, ended.origin, ended.wait)


def _attribute(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))
