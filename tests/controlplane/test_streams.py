"""A stream's status waits for the write that is under way, also when the task that asked for the write is cancelled."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from agentserving_controlplane.api import streams
from support.served_plane import ServedPlane, refusal, until_end


class SlowContext:
    """Ends a write when `go_on` is set, and says whether a write is under way."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.writing = False

    async def write(self, _: object) -> None:
        self.writing = True
        await self.go_on.wait()
        self.writing = False


async def cancelled_write(outlet: Any, context: SlowContext) -> None:
    writer = asyncio.create_task(outlet.write("message"))
    while not context.writing:
        await asyncio.sleep(0)
    writer.cancel()
    assert isinstance((await asyncio.gather(writer, return_exceptions=True))[0], asyncio.CancelledError)


async def test_close_waits_for_a_write_whose_task_was_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LAST_WRITE_S", 60.0)
    context = SlowContext()
    outlet = streams.Outlet(context)  # type: ignore[arg-type]
    await cancelled_write(outlet, context)
    closing = asyncio.create_task(outlet.close())
    await asyncio.wait([closing], timeout=0.05)
    assert not closing.done()
    context.go_on.set()
    await closing
    assert not context.writing


async def test_close_gives_up_on_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LAST_WRITE_S", 0.01)
    context = SlowContext()
    outlet = streams.Outlet(context)  # type: ignore[arg-type]
    await cancelled_write(outlet, context)
    await outlet.close()
    assert context.writing
    context.go_on.set()


async def test_an_error_during_the_first_write_reaches_every_client() -> None:
    # The set of engines is sent when a stream begins; the error comes meanwhile.
    async with ServedPlane() as served:
        path = "/agentserving.v1.CallService/Admissions"

        async def reason() -> str:
            stream = served.channel.stream_stream(path)()
            await stream.write(b"\xff" * 40)
            return (await refusal(until_end(stream))).reason

        assert set(await asyncio.gather(*(reason() for _ in range(100)))) == {"MALFORMED_MESSAGE"}


async def test_a_write_that_fails_after_its_task_was_cancelled_is_no_unhandled_error() -> None:
    """The client goes away while a message is on its way to it and the stream ends."""
    fails, begun = asyncio.Event(), asyncio.Event()

    class Context:
        async def write(self, message: object) -> None:
            begun.set()
            await fails.wait()
            raise RuntimeError("the client has gone")

    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unhandled.append(context))
    context: Any = Context()
    outlet = streams.Outlet(context)
    task = asyncio.create_task(outlet.write("message"))
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    fails.set()
    await outlet.close()
    del outlet, task
    gc.collect()
    assert unhandled == []
