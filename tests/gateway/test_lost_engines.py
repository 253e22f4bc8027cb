"""Engines whose machine disappears, and engines that are slow to read."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agentserving_gateway.envoy import FrontSettings, bootstrap
from gateway.gateway_rig import answer_json, rig

BROKEN_AFTER_S = 10


def test_idle_connections_to_engines_break_ten_seconds_after_their_machine_disappears() -> None:
    # Only the settings are checked here; e2e/nodes/test_node_loss.py removes a machine.
    document = bootstrap(FrontSettings(listen="127.0.0.1:1", run_dir=Path("/run")))
    (engines,) = [one for one in document["static_resources"]["clusters"] if one["name"] == "engines"]
    idle = engines["upstream_connection_options"]["tcp_keepalive"]
    assert idle["keepalive_time"] + idle["keepalive_probes"] * idle["keepalive_interval"] == BROKEN_AFTER_S
    (unacknowledged,) = engines["upstream_bind_config"]["socket_options"]
    assert unacknowledged["int_value"] == 30_000


async def test_an_engine_that_is_slow_to_read_a_large_body_is_not_disconnected() -> None:
    body = b'{"x":"' + b"a" * (48 << 20) + b'"}'

    async with rig(answer_json, max_body_bytes=64 << 20) as made:
        server, made.engines[0].server = made.engines[0].server, None
        assert server is not None
        server.close()
        host, port = made.engines[0].address.split(":")

        async def reads_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(BROKEN_AFTER_S + 3)  # the subject of the test: a busy engine
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"content-length" in head.lower()
            await reader.readexactly(len(body))
            await answer_json(b"", reader, writer)
            writer.close()

        slow = await asyncio.start_server(reads_late, host, int(port), limit=1 << 15)
        try:
            answer = await made.post(body=body, headers="x-agentserving-program-id: p\r\n", bound_s=60)
            assert answer.startswith(b"HTTP/1.1 200")
        finally:
            slow.close()
