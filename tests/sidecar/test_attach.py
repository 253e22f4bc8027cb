"""The stream to the leader: what ends while the journal is replayed is neither lost nor out of order."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from agentserving.transport.leader_channel import LeaderChannel
from agentserving.v1 import engine_service_pb2 as pb
from agentserving.v1 import engine_service_pb2_grpc as rpc
from agentserving_sidecar.attach import MAX_QUEUED, LeaderLink


class Leader(rpc.EngineServiceServicer):
    """Reads when it is let, and remembers."""

    def __init__(self) -> None:
        self.may_read = asyncio.Event()
        self.attached = asyncio.Event()
        self.seqs: list[int] = []
        self.hellos = 0

    async def Attach(self, requests: Any, context: Any) -> None:
        """See the proto."""
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
        self.kept = [self.report(seq) for seq in range(1, 11)]

    @staticmethod
    def report(seq: int) -> pb.Report:
        return pb.Report(seq=seq, calls=[pb.CallReport(call_id="x" * 500_000)])

    def hello(self) -> pb.EngineHello:
        return pb.EngineHello(engine_id="e1", boot_id="b1")

    def unacked(self) -> list[pb.Report]:
        return self.kept

    def leader_welcome(self, welcome: pb.Welcome) -> None: ...

    def leader_directive(self, directive: pb.Directive) -> None: ...

    def leader_ack(self, seq: int) -> None: ...


async def test_what_ends_while_the_journal_is_replayed_follows_it() -> None:
    leader, events = Leader(), Events()
    server = grpc.aio.server()
    rpc.add_EngineServiceServicer_to_server(leader, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = LeaderChannel(f"127.0.0.1:{port}")
    async with asyncio.timeout(20):
        link = LeaderLink(channel, events)
        running = asyncio.create_task(link.run())
        link.renew()
        await leader.attached.wait()
        # The replay is more than the connection takes in: it has not been sent yet.
        for seq in (11, 12):
            link.send(pb.AttachRequest(report=events.report(seq)))
        for _ in range(2 * MAX_QUEUED):
            link.send(pb.AttachRequest(report=pb.Report()))
        assert not link.attached
        leader.may_read.set()
        link.send(pb.AttachRequest(report=events.report(13)))
        while 13 not in leader.seqs:
            await asyncio.sleep(0.01)
        assert [seq for seq in leader.seqs if seq] == list(range(1, 14))
        assert leader.seqs.count(0) <= MAX_QUEUED
        assert leader.hellos == 1
        assert link.attached
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await channel.close()
    await server.stop(0)
