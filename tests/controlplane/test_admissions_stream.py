"""Requests and answers that are there together travel together, with gateways and leaders of either version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from agentserving.contract.ids import CallId, ProgramId, ProgramKey, Tenant
from agentserving.transport.leader_channel import LeaderChannel
from agentserving.v1 import call_service_pb2 as pb
from agentserving_controlplane.api import admissions
from agentserving_controlplane.engines.directives import (
    Account,
    Accounts,
    Acknowledgement,
    CancelCalls,
    ToEngine,
    together,
)
from agentserving_gateway.calls import Admitted, CallRequest, Ending, EndOfCall
from agentserving_gateway.engines import Engine
from agentserving_gateway.leader import Leader
from hypothesis import given
from hypothesis import strategies as st
from support.eventually import eventually_async
from support.served_plane import ServedPlane


@pytest_asyncio.fixture
async def served() -> AsyncIterator[ServedPlane]:
    async with ServedPlane() as served:
        yield served


def admit(number: int, **fields: Any) -> pb.AdmissionsRequest:
    return pb.AdmissionsRequest(
        stream_id=number, admit=pb.AdmitCallRequest(program_id=f"p{number}", implicit=True, **fields)
    )


async def answers_to(stream: Any, count: int) -> list[list[pb.AdmissionsResponse]]:
    """The messages that carry so many answers, each as its answers."""
    found: list[list[pb.AdmissionsResponse]] = []
    async with asyncio.timeout(20):
        while sum(map(len, found)) < count:
            message = await stream.read()
            assert message is not grpc.aio.EOF
            if message.WhichOneof("response") != "engines":
                found.append(list(message.more) or [message])
    return found


async def test_requests_in_one_message_are_answered_in_order_and_in_few_messages(served: ServedPlane) -> None:
    await served.attach()
    stream = served.calls.Admissions()
    await stream.write(pb.AdmissionsRequest(hello=pb.GatewayHello(reads_more=True)))
    count = 3 * admissions.MAX_TOGETHER
    await stream.write(pb.AdmissionsRequest(more=[admit(number) for number in range(1, count)]))
    messages = await answers_to(stream, count - 1)
    assert [answer.stream_id for message in messages for answer in message] == list(range(1, count))
    assert len(messages) == 3
    assert max(map(len, messages)) == admissions.MAX_TOGETHER


async def test_one_refusal_among_several_requests_is_that_requests_alone(served: ServedPlane) -> None:
    await served.attach()
    stream = served.calls.Admissions()
    await stream.write(pb.AdmissionsRequest(hello=pb.GatewayHello(reads_more=True)))
    bad = admit(2)
    bad.admit.prompt_tokens = -1
    await stream.write(pb.AdmissionsRequest(more=[admit(1), bad, admit(3)]))
    answers = [answer for message in await answers_to(stream, 3) for answer in message]
    assert [answer.WhichOneof("response") for answer in answers] == ["admitted", "error", "admitted"]


async def test_a_gateway_that_does_not_read_several_answers_gets_them_one_by_one(served: ServedPlane) -> None:
    await served.attach()
    stream = served.calls.Admissions()
    await stream.write(pb.AdmissionsRequest(hello=pb.GatewayHello()))
    await stream.write(pb.AdmissionsRequest(more=[admit(number) for number in range(1, 9)]))
    assert [len(message) for message in await answers_to(stream, 8)] == [1] * 8


async def test_what_a_gateway_asked_before_it_closed_its_side_is_answered(served: ServedPlane) -> None:
    await served.attach()
    stream = served.calls.Admissions()
    await stream.write(pb.AdmissionsRequest(hello=pb.GatewayHello(reads_more=True)))
    await stream.write(pb.AdmissionsRequest(more=[admit(number) for number in range(1, 100)]))
    await stream.done_writing()
    assert sum(map(len, await answers_to(stream, 99))) == 99


class SlowOutlet:
    """Writes nothing until `go_on` is set."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.written: list[pb.AdmissionsResponse] = []

    async def write(self, message: pb.AdmissionsResponse) -> None:
        await self.go_on.wait()
        self.written += list(message.more) or [message]


async def test_answers_that_come_while_another_one_is_written_are_written_too(served: ServedPlane) -> None:
    await served.attach()
    outlet = SlowOutlet()
    stream = admissions.Admissions(served.plane, outlet, Tenant("default"))  # type: ignore[arg-type]
    stream._take(pb.AdmissionsRequest(hello=pb.GatewayHello(reads_more=True)))
    writing = asyncio.create_task(stream.write())
    try:
        for number in (1, 2, 3):
            stream._take(admit(number))
            await asyncio.sleep(0)
        outlet.go_on.set()
        await eventually_async(lambda: len(outlet.written) == 3)
        assert [answer.stream_id for answer in outlet.written] == [1, 2, 3]
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def test_a_gateway_that_does_not_read_is_not_read_either(
    served: ServedPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admissions, "MAX_WAITING", 100)
    streams: list[admissions.Admissions] = []
    read = admissions.Admissions.read

    async def noted(self: admissions.Admissions, context: Any) -> None:
        streams.append(self)
        await read(self, context)

    monkeypatch.setattr(admissions.Admissions, "read", noted)
    await served.attach()
    stream = served.calls.Admissions()
    await stream.write(pb.AdmissionsRequest(hello=pb.GatewayHello(reads_more=True)))

    async def ask() -> None:
        while True:
            await stream.write(pb.AdmissionsRequest(more=[admit(1, name="n" * 128)] * 30))

    asking = asyncio.create_task(ask())
    async with asyncio.timeout(30):
        while not (streams and len(streams[0]._answers) > 100):
            await asyncio.sleep(0.01)
    assert len(streams[0]._answers) <= 100 + 30
    asking.cancel()
    stream.cancel()
    await asyncio.gather(asking, return_exceptions=True)


# -- the gateway's side ------------------------------------------------------------------------------------------------


class Listener:
    """Counts nothing but knows that there is a leader."""

    def __init__(self) -> None:
        self.has_engines = asyncio.Event()

    def found(self) -> None:
        pass

    def lost(self) -> None:
        pass

    def engines(self, engines: list[Engine]) -> None:
        if engines:
            self.has_engines.set()


async def test_calls_that_arrive_in_one_turn_of_the_loop_are_one_message_there_and_back(
    served: ServedPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    await served.attach()
    sizes: list[int] = []
    read = admissions.Admissions._take

    def take(self: admissions.Admissions, request: pb.AdmissionsRequest) -> None:
        if request.WhichOneof("request") is None:
            sizes.append(len(request.more))
        read(self, request)

    monkeypatch.setattr(admissions.Admissions, "_take", take)
    listener = Listener()
    leader = Leader(LeaderChannel(f"127.0.0.1:{served.port}"), listener)
    running = asyncio.create_task(leader.run())
    try:
        async with asyncio.timeout(20):
            await listener.has_engines.wait()
            requests = [CallRequest(tenant=Tenant("t"), program_id=ProgramId(f"p{n}")) for n in range(20)]
            admitted = await asyncio.gather(*(leader.admit(request, 10) for request in requests))
            assert all(isinstance(each, Admitted) for each in admitted)
            assert sizes == [20]
            for each in admitted:
                assert isinstance(each, Admitted)
                leader.end(
                    EndOfCall(call_id=each.call_id, tenant=each.tenant, ending=Ending.CANCELLED, never_started=True)
                )
            await leader.flush(10)
        assert sizes == [20, 20]
        assert served.plane.table.open_calls == 0
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


# -- to engines --------------------------------------------------------------------------------------------------------


def account(number: int, service_us: int) -> Account:
    return Account(ProgramKey(Tenant("t"), ProgramId(f"p{number}")), service_us, 0)


MESSAGES = st.one_of(
    st.builds(lambda n, us: Accounts((account(n, us),)), st.integers(0, 3), st.integers(0, 9)),
    st.builds(Acknowledgement, st.integers(0, 9)),
    st.builds(lambda n: CancelCalls((CallId(f"p.1.{n}"),)), st.integers(0, 9)),
)


def effect(messages: list[ToEngine]) -> Any:
    """What an engine and its sidecar make of some messages."""
    accounts: dict[ProgramKey, int] = {}
    acknowledged, others = -1, []
    for message in messages:
        match message:
            case Accounts(found):
                for each in found:
                    accounts[each.root] = max(accounts.get(each.root, 0), each.attained_service_us)
            case Acknowledgement(seq):
                acknowledged = max(acknowledged, seq)
            case _:
                others.append(message)
    return accounts, acknowledged, others


@given(messages=st.lists(MESSAGES, min_size=1, max_size=20))
def test_messages_to_an_engine_taken_together_say_the_same_in_fewer(messages: list[ToEngine]) -> None:
    acks = iter(sorted(message.seq for message in messages if isinstance(message, Acknowledgement)))
    messages = [Acknowledgement(next(acks)) if isinstance(each, Acknowledgement) else each for each in messages]
    fewer = together(messages)
    assert effect(fewer) == effect(messages)
    assert sum(isinstance(each, Accounts | Acknowledgement) for each in fewer) <= 2
