"""Channels to our own parts go there directly, whatever proxy the environment names, and are created in one module."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = ("proto", "process", "controlplane", "gateway", "cli", "engine-image", "simulator", "operator")

CLIENTS = {
    "blocking": """
        import agentserving
        with agentserving.Client(address, settings=agentserving.Settings(tls=None, deadline_s=2, attempts=1)) as client:
            client.overview() if hasattr(client, "overview") else client.list_engines()
    """,
    "asyncio": """
        import asyncio
        from agentserving.transport.channels import dial_async
        from agentserving.transport.connection import Settings
        async def main():
            async with dial_async(address, Settings(tls=None), known=(address,)) as channel:
                await channel.unary_unary("/x/Y")(b"", timeout=2)
        asyncio.run(main())
    """,
    "etcd": """
        import asyncio
        from agentserving_controlplane.store.etcd.store import EtcdStore
        async def main():
            store = EtcdStore((address,), "/t")
            try:
                await store.load()
            finally:
                await store.close()
        asyncio.run(asyncio.wait_for(main(), 2))
    """,
}


class Listener:
    """Counts connections and closes each."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port, self.connections = self._socket.getsockname()[1], 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listeners() -> Iterator[tuple[Listener, Listener]]:
    server, proxy = Listener(), Listener()
    yield server, proxy
    server.close()
    proxy.close()


@pytest.mark.parametrize("script", CLIENTS.values(), ids=CLIENTS.keys())
def test_no_channel_goes_through_a_proxy_of_the_environment(listeners: tuple[Listener, Listener], script: str) -> None:
    server, proxy = listeners
    code = f"address = '127.0.0.1:{server.port}'\n" + textwrap.dedent(script)
    url = f"http://127.0.0.1:{proxy.port}"
    environment = {k: v for k, v in os.environ.items() if k.lower() not in ("no_proxy", "no_grpc_proxy")}
    environment |= dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"), url)
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, check=False)
    assert server.connections > 0
    assert proxy.connections == 0


def test_only_one_module_creates_channels() -> None:
    creators = set()
    for root in SOURCES:
        for path in (ROOT / root).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr in ("insecure_channel", "secure_channel"):
                    creators.add(str(path.relative_to(ROOT)))
    assert creators == {"proto/agentserving/transport/channels.py"}
