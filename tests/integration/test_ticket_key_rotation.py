"""The ticket key is rotated under load: no ticket is rejected, and no process is restarted."""

from __future__ import annotations

import asyncio
import base64
import datetime
import os
import time
from pathlib import Path

import pytest
from agentserving.contract.signatures import signing_key
from agentserving.contract.ticket import IssuerKeys, verify
from agentserving.contract.ticket_keys import LOOK_EVERY_S
from agentserving.v1 import call_service_pb2
from agentserving_operator.manifests import Manifest
from agentserving_operator.manifests.ticket_key_secret import TicketKeys, rotated, ticket_key_secret
from support.certificate_files import now
from support.killable_cluster import KEY, until
from support.operator_objects import make_cluster
from support.streaming_cluster import Agents, StreamingCluster

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(240)]

PROGRAMS = 6


def mount(secret: Manifest, directory: Path) -> None:
    """Replaces the mounted files as a kubelet does: no file is partly written and no key is missing in between."""
    for name, data in sorted(secret["data"].items(), reverse=True):
        whole = directory / "whole"
        whole.write_bytes(base64.b64decode(data))
        os.replace(whole, directory / name)
    optional = {f"{name}.{which}" for name in ("key", "public") for which in ("next", "previous")}
    for name in optional - secret["data"].keys():
        (directory / name).unlink(missing_ok=True)


def rejected(cluster: StreamingCluster) -> float:
    return sum(each.metric("agentserving_engine_rejected_tickets_total") for each in cluster.sidecars.values())


async def test_tickets_of_both_keys_are_accepted_during_a_rotation() -> None:
    async with StreamingCluster(engines=2) as cluster:
        agents = Agents(cluster.url, "agent", PROGRAMS, tokens=20)
        running = asyncio.create_task(agents.run())

        async def read_by_all() -> None:
            """Every process that handled one of these calls has read the files again."""
            changed = time.monotonic()
            seen = len(agents.admitted)
            await until(lambda: [b for b, _ in agents.admitted[seen:] if b > changed + LOOK_EVERY_S][PROGRAMS:])

        await until(lambda: agents.admitted)
        keys, at = TicketKeys(KEY), now()
        steps: list[TicketKeys] = []
        for _ in range(3):
            keys = rotated(keys, "asked", at, lambda count: b"n" * count)
            at += datetime.timedelta(hours=1)
            steps.append(keys)
            await asyncio.to_thread(mount, ticket_key_secret(make_cluster(), keys), cluster.directory)
            await read_by_all()
        agents.stop()
        async with asyncio.timeout(100):
            await running
        assert [(each.next is not None, each.previous is not None) for each in steps] == [
            (True, False), (False, True), (False, False),
        ]  # fmt: skip
        assert agents.broken == []
        await until(
            lambda: all(s.metric("agentserving_sidecar_unacked_reports") == 0 for s in cluster.sidecars.values())
        )
        assert await asyncio.to_thread(rejected, cluster) == 0
        admitted = await cluster.calls.AdmitCall(call_service_pb2.AdmitCallRequest(program_id="last", implicit=True))
        public = IssuerKeys([signing_key(keys.key).public_key()])
        assert verify(admitted.ticket, public, engine_id=admitted.engine_id, now_unix_s=0).ticket.program_id == "last"
        assert keys.key != KEY
        table = await cluster.table()
        for name in agents.programs:
            assert (table[name].calls_completed, table[name].output_tokens) == (agents.calls[name], agents.tokens[name])
