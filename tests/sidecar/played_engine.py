"""The two processes of an engine, played: `core DIRECTORY BOOT` (the plugin's channel) and `front PORT` (HTTP)."""

from __future__ import annotations

import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from agentserving.contract.channel import EngineHello
from agentserving_engine.calls.outbox import Outbox
from agentserving_engine.channel_server import ChannelServer


def core(directory: Path, boot_id: str) -> None:
    """An idle engine that beats."""
    hello = EngineHello(
        boot_id=boot_id, pid=1, engine_kind="SIMULATOR", engine_version="0", plugin_version="0", max_num_seqs=8,
        max_model_len=8192, block_size=16, num_blocks=1000, data_parallel_size=1, async_scheduling=False,
        policy_version=0,
    )  # fmt: skip
    channel = ChannelServer(directory / "rank0.sock", hello, Outbox())
    signal.sigwait({signal.SIGTERM})
    channel.close()


def front(port: int) -> None:
    """Healthy, and serves one model."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"data": [{"id": "m"}]}'
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent."""

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "core":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        core(Path(sys.argv[2]), sys.argv[3])
    else:
        front(int(sys.argv[2]))
