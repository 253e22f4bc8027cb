"""Connects a leader's state with the exporter of spans, where there is an endpoint."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Coroutine
from typing import Any

from agentserving.contract.ids import ProgramKey
from agentserving_process.supervision import CannotStartError

from agentserving_controlplane.settings import TelemetryOptions
from agentserving_controlplane.state import LeaderState
from agentserving_controlplane.table.endings import origin_of
from agentserving_controlplane.table.traces import ToolWait
from agentserving_controlplane.telemetry.feed import EndedToolWait, Feed


def check(options: TelemetryOptions) -> None:
    """CannotStartError when spans are wanted and the package that encodes them is not there."""
    if not options.otlp_endpoint:
        return
    try:
        importlib.import_module("opentelemetry.proto.trace.v1.trace_pb2")
    except ImportError as error:
        raise CannotStartError(f"--otlp-endpoint: {error}: pip install 'agentserving[otel]'") from None


def sender(options: TelemetryOptions, state: LeaderState) -> Callable[[], Coroutine[Any, Any, None]] | None:
    """The task that sends spans of what ends from now on; None without an endpoint."""
    if not options.otlp_endpoint:
        return None
    # Only here: the package is optional.
    from agentserving_controlplane.telemetry.otlp import Exporter

    feed = Feed(state.span_counts)
    state.endings.on_ending = feed.put

    def on_tool_wait(key: ProgramKey, wait: ToolWait) -> None:
        row = state.table.rows.get(key)
        if row is not None:
            feed.put(key.tenant, EndedToolWait(origin_of(row, state.table.index.root_of(row)), wait))

    state.table.programs.traces.on_tool_wait = on_tool_wait
    return Exporter(options, feed).run
