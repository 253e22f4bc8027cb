"""`generate` when the engine that was chosen does not answer."""

from __future__ import annotations

import asyncio

import aiohttp
import grpc
from agentserving import AsyncClient, Client, Outcome
from agentserving.v1 import call_service_pb2_grpc, types_pb2
from agentserving.v1 import engine_service_pb2 as epb
from agentserving.v1 import engine_service_pb2_grpc as erpc
from agentserving_sidecar.generate import GenerateServicer
from gateway.gateway_rig import Engine, answer_json, until
from proto.client.test_watching import control_plane

NOBODY = "127.0.0.1:9"


async def test_an_engine_that_cannot_be_reached_is_left_out_and_another_asked() -> None:
    engine = Engine("e1", answer_json)
    await engine.start()
    async with control_plane() as (port, plane), aiohttp.ClientSession() as session:
        sidecar = grpc.aio.server()
        call_service_pb2_grpc.add_CallServiceServicer_to_server(GenerateServicer(engine.address, session), sidecar)
        sidecar_address = f"127.0.0.1:{sidecar.add_insecure_port('127.0.0.1:0')}"
        await sidecar.start()
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        streams = []
        for name, address in (("e0", NOBODY), ("e1", sidecar_address)):
            streams.append(erpc.EngineServiceStub(channel).Attach())
            hello = epb.EngineHello(
                engine_id=name,
                boot_id="b",
                address=engine.address,
                sidecar_address=address,
                capabilities=types_pb2.EngineCapabilities(max_num_seqs=4, block_size=16, num_blocks=1000),
            )
            await streams[-1].write(epb.AttachRequest(hello=hello))
        await until(lambda: sum(e.attached for e in plane.engines.engines.values()) == 2)
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            for _ in range(4):
                async with await client.generate("/v1/completions", {}, program_id="p") as answer:
                    assert await answer.read() == b"{}"
                    assert answer.admission.engine_id == "e1"

        def block() -> bytes:
            with Client(f"127.0.0.1:{port}") as blocking, blocking.generate("/v1/completions", b"{}") as answer:
                return answer.read()

        assert await asyncio.to_thread(block) == b"{}"
        calls = [call for row in plane.table.rows.values() for call in row.calls.values()]
        assert {call.engine_id for call in calls} == {"e1"}
        assert plane.table.totals.outcomes == {Outcome.FAILED: plane.table.totals.calls_completed}
        assert plane.table.totals.calls_completed > 0, "the engine that nobody reaches was never chosen"
        for stream in streams:
            stream.cancel()
        await channel.close()
        await sidecar.stop(None)
    assert engine.server is not None
    engine.server.close()
