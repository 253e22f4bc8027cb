"""The plugin's end of the channel: one daemon thread that owns the socket.

`schedule()` must never block, so it only appends to and pops from deques, and wakes the thread, which does all the I/O.
Heartbeats come from the thread as well, because an idle engine makes no steps. A new sidecar connection replaces the
previous one and is sent every terminal record that is not acknowledged.

The thread survives its own failures: whatever is raised is logged and counted, the connection is dropped, and the loop
starts again. Should the thread be gone nevertheless, the scheduler's next report restarts it (`ensure_running`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from pathlib import Path

import msgspec
from agentserving.contract.channel import (
    HEARTBEAT_S,
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

from agentserving_engine.calls import Outbox
from agentserving_engine.clock import now_us

logger = logging.getLogger("vllm.agentserving")

# Bytes queued for a sidecar that does not read; beyond it the connection is dropped, and the sidecar reconnects.
MAX_OUT_BYTES = 64 << 20
# Messages queued while the thread is busy; the oldest is dropped first.
MAX_QUEUED = 100_000
RECORDS_PER_FRAME = 1000
# How often delayed records are looked at, while there are any.
DELAYED_CHECK_S = 0.1
# Pause before the loop starts again after a failure, doubled up to the maximum while failures follow each other.
RESTART_S, MAX_RESTART_S = 0.05, 2.0


class ChannelServer:
    """Listens on `path`. The scheduler pops directives from `inbox` and posts messages."""

    def __init__(self, path: Path, hello: EngineHello, outbox: Outbox) -> None:
        self.inbox: deque[ToEngine] = deque()
        # Failures of the thread since boot.
        self.errors = 0
        self._path = path
        self._hello = hello
        self._outbox = outbox
        self._out: deque[FromEngine] = deque(maxlen=MAX_QUEUED)
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
        self._beat_s = 0.0
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        # The sidecar may run as another user of the same group: in a pod the directory belongs to the group.
        path.chmod(0o660)
        self._listener.listen(4)
        self._listener.setblocking(False)
        self._thread = self._start_thread()

    def _start_thread(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="agentserving-channel", daemon=True)
        thread.start()
        return thread

    # -- called by the scheduler's thread ------------------------------------------------------------------------

    def post(self, message: FromEngine) -> None:
        """Queues a message and wakes the thread; one system call, never blocks."""
        self._out.append(message)
        self._wake()

    def set_load(self, load: Load, policy_version: int) -> None:
        """Sets what the next heartbeat says."""
        self._load = load
        self._policy_version = policy_version
        self.step_ended()

    def step_ended(self) -> None:
        """A step has ended: the engine makes progress."""
        self._last_step_s = time.monotonic()

    def ensure_running(self) -> None:
        """Restarts the thread if it has died."""
        if not self._thread.is_alive() and not self._stopping:
            self.errors += 1
            logger.error("agentserving: the channel's thread has died; it is restarted")
            self._thread = self._start_thread()

    def close(self) -> None:
        """Ends the thread and removes the socket."""
        self._stopping = True
        self._wake()
        self._thread.join(timeout=2)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_w, b"x")

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause_s = RESTART_S
        while not self._stopping:
            began_s = time.monotonic()
            try:
                self._serve()
            except Exception:
                self.errors += 1
                logger.exception("agentserving: the channel to the sidecar failed; it is restarted")
            finally:
                self._close_peer()
            pause_s = RESTART_S if time.monotonic() - began_s > MAX_RESTART_S else min(2 * pause_s, MAX_RESTART_S)
            if not self._stopping:
                time.sleep(pause_s)

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ, "listener")
            selector.register(self._wake_r, selectors.EVENT_READ, "wake")
            while not self._stopping:
                timeout = DELAYED_CHECK_S if self._outbox.delays else HEARTBEAT_S
                for key, events in selector.select(timeout):
                    try:
                        self._handle(selector, key, events)
                    except (OSError, ValueError, msgspec.MsgspecError) as error:
                        self.errors += 1
                        logger.warning("agentserving: the sidecar's connection is dropped: %s", error)
                        self._drop(selector)
                self._make_messages()
                try:
                    self._flush(selector)
                except OSError:
                    self._drop(selector)

    def _make_messages(self) -> None:
        """Terminal records whose delay is over, and a heartbeat when nothing else says that the engine is alive."""
        now_s = time.monotonic()
        if any(isinstance(message, EngineReport) for message in self._out):
            self._beat_s = now_s
        if now_s - self._beat_s >= HEARTBEAT_S * 0.9:
            self._beat_s = now_s
            self._out.append(self._heartbeat(now_s))
        due = self._outbox.take_due(now_us())
        if due:
            self._out.append(EngineReport(self._load, due, self._policy_version))

    def _handle(self, selector: selectors.BaseSelector, key: selectors.SelectorKey, events: int) -> None:
        if key.data == "listener":
            self._accept(selector)
        elif key.data == "wake":
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_r, 4096)
        # An event of the previous connection may follow the one that replaced it.
        elif self._peer is not None and key.fileobj is self._peer and events & selectors.EVENT_READ:
            data = self._peer.recv(1 << 18)
            if not data:
                self._drop(selector)
                return
            for body in self._splitter.feed(data):
                self._receive(to_engine_decoder.decode(body))

    def _accept(self, selector: selectors.BaseSelector) -> None:
        peer, _ = self._listener.accept()
        self._drop(selector)
        peer.setblocking(False)
        self._peer, self._splitter = peer, FrameSplitter()
        self._buffer = bytearray(frame(self._hello))
        self._out.clear()
        unacked = self._outbox.unacked()
        for start in range(0, len(unacked), RECORDS_PER_FRAME):
            records = unacked[start : start + RECORDS_PER_FRAME]
            self._buffer += frame(EngineReport(self._load, records, self._policy_version))
        selector.register(peer, selectors.EVENT_READ, "peer")

    def _receive(self, message: ToEngine) -> None:
        if isinstance(message, SetPolicy):
            # Answered here because an idle engine makes no steps; the policy is in force before the next one.
            reason = ""
            try:
                from_dict(message.policy)
            except InvalidPolicyError as error:
                reason = str(error)
            self._out.append(PolicyResult(message.version, reason))
            if reason:
                return
        self.inbox.append(message)

    def _heartbeat(self, now_s: float) -> EngineReport:
        age_us = int((now_s - self._last_step_s) * 1_000_000)
        load = msgspec.structs.replace(self._load, last_step_age_us=age_us)
        return EngineReport(load, [], self._policy_version)

    def _flush(self, selector: selectors.BaseSelector) -> None:
        if self._peer is None:
            # Terminal records stay in the outbox; anything else would be stale when a sidecar connects.
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
            self._close_peer()

    def _close_peer(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None
            self._buffer.clear()
