"""A real etcd with ports and data of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
from agentserving_cli.local.cluster import find_etcd
from agentserving_cli.local.ports import free_ports
from support.eventually import eventually


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class EtcdServer:
    """May be killed and started again; `close` deletes the data."""

    def __init__(self, *flags: str, ready: Callable[[str], bool] | None = None) -> None:
        """`flags` are etcd's. With TLS, `ready` checks whether a client URL answers."""
        self._flags, self._ready = flags, ready or _healthy
        self._scheme = "https" if "--cert-file" in flags else "http"
        self._directory = Path(tempfile.mkdtemp(prefix="agentserving-etcd-"))
        self.client_port, self._peer_port = free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.client_port}"

    @property
    def data_dir(self) -> Path:
        """Where its data are."""
        return self._directory / "data"

    def start(self) -> None:
        """Returns when etcd answers."""
        client, peer = f"{self._scheme}://{self.endpoint}", f"http://127.0.0.1:{self._peer_port}"
        argv = [
            find_etcd(), "--name", "test", "--data-dir", str(self.data_dir),
            "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
            "--initial-advertise-peer-urls", peer, "--initial-cluster", f"test={peer}",
            "--heartbeat-interval", "20", "--election-timeout", "200", "--log-level", "error",
            *self._flags,
        ]  # fmt: skip
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            eventually(lambda: self._ready(client), f"etcd answers at {client}", deadline_s=60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{(self._directory / 'log').read_text()[-1000:]}") from None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; SIGSTOP and SIGCONT suspend and continue the process."""
        assert self._process is not None
        self._process.send_signal(number)

    async def compact(self, revision: int) -> None:
        """Removes the history before a revision."""
        async with grpc.aio.insecure_channel(self.endpoint) as channel:
            # CompactionRequest {revision = 1, physical = 2}, encoded by hand: the store does not use it.
            number, body = revision, bytearray(b"\x08")
            while number > 127:
                body.append(number & 127 | 128)
                number >>= 7
            await channel.unary_unary("/etcdserverpb.KV/Compact")(bytes(body) + bytes([number]) + b"\x10\x01")

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Kills the process and deletes its data."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)


def unused_endpoint() -> str:
    """host:port without a listener."""
    return f"127.0.0.1:{free_ports(1)[0]}"
