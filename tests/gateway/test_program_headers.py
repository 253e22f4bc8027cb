"""Which headers name programs is a cluster's choice."""

from __future__ import annotations

import pytest
from agentserving.contract.program_headers import read_ignored, read_program_headers
from agentserving.contract.ticket import verify
from agentserving_gateway.identity import sources
from gateway.gateway_rig import KEYS, answer_json, rig, value


@pytest.mark.parametrize(
    ("headers", "program", "parent"),
    [
        ("X-Run: r\r\nx-parent-run: q\r\nsession-id: s\r\n", "r", "q"),
        ("x-session-affinity: a\r\n", "a", ""),
        ("x-session-id: set-by-a-proxy\r\n", "", ""),
    ],
)
async def test_a_cluster_chooses_the_headers_that_name_programs(headers: str, program: str, parent: str) -> None:
    chosen = sources(read_program_headers("x-run:x-parent-run"), read_ignored("x-session-id"))
    async with rig(answer_json, sources=chosen) as front:
        for body in (b"{}", b'{"prompt": "again"}'):
            await front.post(headers=headers, body=body)
        tickets = [
            verify(value(each, "x-session-id"), KEYS, engine_id="e0", now_unix_s=0).ticket
            for each in front.engines[0].requests
        ]
        named = {each.program_id for each in tickets}
        # A call without a name is a program of its own.
        assert named == {program} if program else len(named) == 2 and "set-by-a-proxy" not in named
        assert {each.root_program_id for each in tickets} == ({parent} if parent else named)
