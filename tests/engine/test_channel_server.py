"""The channel's thread: what it sends to a new sidecar, delayed records, and that it survives its own failures."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from agentserving.contract.channel import (
    AckCalls,
    CallRecord,
    Cancel,
    EngineHello,
    EngineReport,
    FrameSplitter,
    FromEngine,
    Load,
    ToEngine,
    frame,
    from_engine_decoder,
)
from agentserving_engine import channel_server
from agentserving_engine.calls import Outbox
from agentserving_engine.channel_server import ChannelServer
from agentserving_engine.clock import now_us

LIMIT_S = 30.0
M = TypeVar("M")

HELLO = EngineHello(
    boot_id="boot", pid=1, engine_kind="SIMULATOR", engine_version="0", plugin_version="0", max_num_seqs=8,
    max_model_len=8192, block_size=16, num_blocks=1000, data_parallel_size=1, async_scheduling=False, policy_version=0,
)  # fmt: skip


def record(call_id: str) -> CallRecord:
    return CallRecord(
        call_id=call_id, attempt=1, program_id="p", root_program_id="p", tenant="default", thread_id="",
        attained_service_us=0, outcome="completed",
    )  # fmt: skip


class Sidecar:
    """A connection to the plugin, as the sidecar makes it."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(LIMIT_S)
        self._socket.connect(str(path))
        self._splitter = FrameSplitter()
        self._messages: list[FromEngine] = []

    def send(self, message: ToEngine) -> None:
        self._socket.sendall(frame(message))

    def receive(self, wanted: type[M], matches: Callable[[M], bool] = lambda message: True) -> M:
        """The next message of this type that matches; others are skipped."""
        while True:
            while self._messages:
                message = self._messages.pop(0)
                if isinstance(message, wanted) and matches(message):
                    return message
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionError("the plugin has closed the connection")
            self._messages += map(from_engine_decoder.decode, self._splitter.feed(data))

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def served(directory: Path, outbox: Outbox | None = None) -> Iterator[tuple[ChannelServer, Callable[[], Sidecar]]]:
    path = directory / "rank0.sock"
    server = ChannelServer(path, HELLO, Outbox() if outbox is None else outbox)
    sidecars: list[Sidecar] = []

    def connect() -> Sidecar:
        sidecars.append(Sidecar(path))
        return sidecars[-1]

    try:
        yield server, connect
    finally:
        server.close()
        for sidecar in sidecars:
            sidecar.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def has(call_id: str) -> Callable[[EngineReport], bool]:
    return lambda report: any(call.call_id == call_id for call in report.calls)


def test_a_new_connection_is_sent_what_is_not_acknowledged(tmp_path: Path) -> None:
    outbox = Outbox()
    with served(tmp_path, outbox) as (server, connect):
        outbox.add(record("a"))
        outbox.add(record("b"))
        first = connect()
        assert first.receive(EngineHello).boot_id == "boot"
        first.receive(EngineReport, has("b"))
        first.send(AckCalls([("a", 1)]))
        until(lambda: bool(server.inbox))
        message = server.inbox.popleft()
        assert isinstance(message, AckCalls)
        outbox.acknowledge(message.calls)
        second = connect()
        assert [call.call_id for call in second.receive(EngineReport, has("b")).calls] == ["b"]


def test_a_delayed_record_is_sent_by_an_idle_engine_unless_it_is_withdrawn(tmp_path: Path) -> None:
    outbox = Outbox()
    with served(tmp_path, outbox) as (_, connect):
        sidecar = connect()
        sidecar.receive(EngineHello)
        outbox.delay(record("goes on"), now_us() + 3_600_000_000)
        outbox.delay(record("is over"), now_us() + 50_000)
        assert outbox.withdraw(("goes on", 1))
        assert [call.call_id for call in sidecar.receive(EngineReport, has("is over")).calls] == ["is over"]
        assert not outbox.withdraw(("is over", 1))
        assert [each.call_id for each in outbox.unacked()] == ["is over"]


def test_garbage_drops_the_connection_and_the_next_one_works(tmp_path: Path) -> None:
    with served(tmp_path) as (server, connect):
        sidecar = connect()
        sidecar.receive(EngineHello)
        sidecar._socket.sendall(b"\xff" * 64)
        with pytest.raises(ConnectionError):
            sidecar.receive(Cancel)
        again = connect()
        again.receive(EngineHello)
        again.send(Cancel(["x"]))
        until(lambda: bool(server.inbox))
        assert server.errors == 1


@pytest.mark.parametrize("method", ["_make_messages", "_flush", "_accept", "_receive"])
def test_the_thread_survives_any_failure_of_its_own(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = threading.Event()
    original = getattr(ChannelServer, method)

    def fails_once(self: ChannelServer, *args: object) -> object:
        if not broken.is_set():
            broken.set()
            raise KeyError("an unforeseen fault")
        return original(self, *args)

    monkeypatch.setattr(ChannelServer, method, fails_once)
    with served(tmp_path) as (server, connect):
        with contextlib.suppress(ConnectionError):
            first = connect()
            first.receive(EngineHello)
            first.send(Cancel(["lost"]))
        until(lambda: server.errors == 1)
        sidecar = connect()
        sidecar.receive(EngineHello)
        server.post(EngineReport(Load(), [record("after")], 0))
        sidecar.receive(EngineReport, has("after"))
    assert "the channel to the sidecar failed" in caplog.text


def test_a_thread_that_is_gone_is_restarted_by_the_next_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(channel_server.threading, "excepthook", lambda _: None)
    original = ChannelServer._serve
    dies = threading.Event()
    dies.set()

    def dies_once(self: ChannelServer) -> None:
        if dies.is_set():
            dies.clear()
            raise SystemExit
        original(self)

    monkeypatch.setattr(ChannelServer, "_serve", dies_once)
    with served(tmp_path) as (server, connect):
        until(lambda: not server._thread.is_alive())
        server.ensure_running()
        connect().receive(EngineHello)
        assert server.errors == 1
        assert "is restarted" in caplog.text
