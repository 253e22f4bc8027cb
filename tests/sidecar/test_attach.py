"""The stream to the leader: what ends while the journal is replayed is neither lost nor out of order."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from agentserving.contract.ids import EngineId
from agentserving.transport.leader_channel import LeaderChannel
from agentserving.v1 import engine_service_pb2 as pb
from agentserving.v1 import engine_service_pb2_grpc as rpc
from agentserving_sidecar.api.attach import MAX_QUEUED_PROGRESS, LeaderLink
from agentserving_sidecar.health import Health, State
from agentserving_sidecar.values import FromLeader, Hello, Report, ToLeader
from sidecar.ports import record, until

SERVING = Health(State.SERVING)


class Leader(rpc.EngineServiceServicer):
    """Reads once it may, and remembers what it has read."""

    def __init__(self) -> None:
        self.may_read = asyncio.Event()
        self.attached = asyncio.Event()
        self.seqs: list[int] = []
        self.hellos = 0

    async def Attach(self, requests: Any, context: Any) -> None:
        self.attached.set()
        await self.may_read.wait()
        await context.write(pb.AttachResponse(welcome=pb.Welcome(epoch=1)))
        while (message := await context.read()) is not grpc.aio.EOF:
            self.hellos += message.HasField("hello")
            if message.HasField("report"):
                self.seqs.append(message.report.seq)


class Events:
    """A sidecar with a journal of ten large reports."""

    def __init__(self) -> None:
        self.found: list[FromLeader] = []

    def greeting(self) -> list[ToLeader]:
        hello = Hello(
            engine_id=EngineId("e1"), engine_address="h:1", sidecar_address="h:2", engine=None, models=(),
            health=SERVING, epoch=0, draining=False, unacked_seq=10,
        )  # fmt: skip
        return [hello, *(report(seq) for seq in range(1, 11))]

    def received(self, message: FromLeader) -> None:
        self.found.append(message)


def report(seq: int) -> Report:
    return Report(seq=seq, boot_id="b", health=SERVING, calls=(("b", record("x" * 500_000)),))


async def test_what_ends_while_the_journal_is_replayed_follows_it() -> None:
    leader, events = Leader(), Events()
    server = grpc.aio.server()
    rpc.add_EngineServiceServicer_to_server(leader, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    link = LeaderLink(LeaderChannel(f"127.0.0.1:{port}"), events)
    async with asyncio.timeout(30):
        running = asyncio.create_task(link.run())
        await leader.attached.wait()
        # The replay is more than the connection takes in: it has not been sent yet.
        for seq in (11, 12):
            link.send(report(seq))
        for _ in range(2 * MAX_QUEUED_PROGRESS):
            link.send(Report(boot_id="b", health=SERVING))
        assert not link.attached
        leader.may_read.set()
        link.send(report(13))
        await until(lambda: 13 in leader.seqs)
        assert [seq for seq in leader.seqs if seq] == list(range(1, 14))
        assert leader.seqs.count(0) <= MAX_QUEUED_PROGRESS
        assert leader.hellos == 1
        assert link.attached
        assert len(events.found) == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await server.stop(0)
