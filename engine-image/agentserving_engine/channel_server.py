"""The plugin's end of the channel: one daemon thread that owns the socket.

`schedule()` must never wait, so it only appends to and pops from deques; the thread does every system call. Heartbeats
come from the thread, because an idle engine makes no steps. A sidecar that connects anew replaces the one before and is
sent every terminal record that nobody has acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec
from agentserving.contract.channel import (
    HEARTBEAT_S,
    CallRecord,
    EngineHello,
    EngineReport,
    FrameSplitter,
    FromEngine,
    Load,
    PolicyResult,
    SetPolicy,
    ToEngine,
    frame,
    to_engine_decoder,
)
from agentserving.contract.policy import InvalidPolicyError, from_dict

# Bytes queued for a sidecar that does not read; beyond, it is cut off and starts anew.
MAX_OUT_BYTES = 64 << 20


class ChannelServer:
    """Listens on `path`; `inbox` is for the scheduler to pop from, `send_report` for it to call."""

    def __init__(self, path: Path, hello: EngineHello, unacked: Callable[[], list[CallRecord]]) -> None:
        self.inbox: deque[ToEngine] = deque()
        self._path = path
        self._hello = hello
        self._unacked = unacked
        self._out: deque[FromEngine] = deque(maxlen=100_000)
        self._load = Load()
        self._last_step_s = time.monotonic()
        self._policy_version = hello.policy_version
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._peer: socket.socket | None = None
        self._splitter = FrameSplitter()
        self._buffer = bytearray()
        self._stopping = False
        self.errors = 0
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        # The sidecar may be another user of the same group: in a pod the directory is the group's.
        path.chmod(0o660)
        self._listener.listen(4)
        self._listener.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="agentserving-channel", daemon=True)
        self._thread.start()

    # -- called by the scheduler's thread ------------------------------------------------------------------------

    def post(self, message: FromEngine, *, wake: bool) -> None:
        """Queues a message; `wake` sends it now instead of at the next heartbeat or wake-up."""
        self._out.append(message)
        if wake:
            self.wake()

    def wake(self) -> None:
        """Makes the thread look at its queue; one system call, never blocks."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_w, b"x")

    def set_load(self, load: Load, policy_version: int) -> None:
        """What the next heartbeat says."""
        self._load = load
        self._policy_version = policy_version
        self.step_ended()

    def step_ended(self) -> None:
        """A step has ended: progress."""
        self._last_step_s = time.monotonic()

    def close(self) -> None:
        """Ends the thread and removes the socket."""
        self._stopping = True
        self.wake()
        self._thread.join(timeout=2)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ, "listener")
        selector.register(self._wake_r, selectors.EVENT_READ, "wake")
        beat = 0.0
        while not self._stopping:
            for key, events in selector.select(timeout=HEARTBEAT_S):
                try:
                    self._handle(selector, key.data, events)
                except (OSError, ValueError, msgspec.MsgspecError):
                    self.errors += 1
                    self._drop(selector)
            now = time.monotonic()
            if now - beat >= HEARTBEAT_S * 0.9:
                beat = now
                self._out.append(self._heartbeat(now))
            try:
                self._flush(selector)
            except OSError:
                self._drop(selector)

    def _handle(self, selector: selectors.BaseSelector, what: str, events: int) -> None:
        if what == "listener":
            peer, _ = self._listener.accept()
            self._drop(selector)
            peer.setblocking(False)
            self._peer, self._splitter = peer, FrameSplitter()
            self._buffer = bytearray(frame(self._hello))
            self._out.clear()
            unacked = self._unacked()
            for start in range(0, len(unacked), 1000):
                self._buffer += frame(EngineReport(self._load, unacked[start : start + 1000], self._policy_version))
            selector.register(peer, selectors.EVENT_READ, "peer")
        elif what == "wake":
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_r, 4096)
        elif self._peer is not None and events & selectors.EVENT_READ:
            data = self._peer.recv(1 << 18)
            if not data:
                self._drop(selector)
                return
            for body in self._splitter.feed(data):
                self._take(to_engine_decoder.decode(body))

    def _take(self, message: ToEngine) -> None:
        if isinstance(message, SetPolicy):
            # Answered here, since an idle engine makes no steps: it is in force before the next one all the same.
            error = ""
            try:
                from_dict(message.policy)
            except InvalidPolicyError as refused:
                error = str(refused)
            self._out.append(PolicyResult(message.version, error))
            if error:
                return
        self.inbox.append(message)

    def _heartbeat(self, now: float) -> EngineReport:
        age = int((now - self._last_step_s) * 1_000_000)
        load = msgspec.structs.replace(self._load, last_step_age_us=age)
        return EngineReport(load, [], self._policy_version)

    def _flush(self, selector: selectors.BaseSelector) -> None:
        if self._peer is None:
            # Nobody listens: terminal records stay in the book, the rest is stale by the time somebody does.
            self._out.clear()
            return
        while self._out:
            self._buffer += frame(self._out.popleft())
        while self._buffer:
            try:
                sent = self._peer.send(self._buffer[: 1 << 18])
            except BlockingIOError:
                break
            del self._buffer[:sent]
        if len(self._buffer) > MAX_OUT_BYTES:
            raise OSError("the sidecar does not read")
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._buffer else 0)
        selector.modify(self._peer, wanted, "peer")

    def _drop(self, selector: selectors.BaseSelector) -> None:
        if self._peer is not None:
            selector.unregister(self._peer)
            self._peer.close()
            self._peer = None
            self._buffer.clear()
