"""Clients reach the front by TLS: HTTP/1.1 and HTTP/2, and a renewed certificate that costs no call."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agentserving_gateway.certificate_files import FrontTls, certificate_files
from agentserving_gateway.envoy import FrontSettings
from agentserving_gateway.ext_proc.self_signed import self_signed
from agentserving_gateway.front import command
from gateway.gateway_rig import Rig, answer_json, rig, until

# A renewed certificate is in use within this time.
IN_FORCE_S = 5.0
# RFC 9113: the connection preface, and an empty SETTINGS frame.
H2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
H2_SETTINGS = 4


def a_pair() -> tuple[bytes, bytes]:
    """(key, certificate): another one at each call."""
    return self_signed(datetime.datetime.now(datetime.UTC))


def write(directory: Path, key: bytes, cert: bytes) -> None:
    """One file after the other, in place: the least careful way to renew."""
    (directory / "tls.key").write_bytes(key)
    (directory / "tls.crt").write_bytes(cert)


def write_as_a_secret(directory: Path, key: bytes, cert: bytes) -> None:
    """As kubelet does: files are links into ..data, which is replaced whole."""
    version = directory / f"..{os.urandom(4).hex()}"
    version.mkdir()
    (version / "tls.key").write_bytes(key)
    (version / "tls.crt").write_bytes(cert)
    (directory / "..data_tmp").symlink_to(version.name)
    (directory / "..data_tmp").replace(directory / "..data")
    for name in ("tls.key", "tls.crt"):
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")


def trusting(cert: bytes | None, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=cert.decode() if cert is not None else None)
    if cert is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


async def connect(port: int, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")


async def served_certificate(port: int) -> str:
    """PEM of what a new connection sees."""
    _, writer = await connect(port, trusting(None))
    try:
        return ssl.DER_cert_to_PEM_cert(writer.get_extra_info("ssl_object").getpeercert(True))
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


def normal(pem: bytes | str) -> str:
    return "".join((pem if isinstance(pem, str) else pem.decode()).split())


@asynccontextmanager
async def front(directory: Path) -> AsyncIterator[Rig]:
    """A rig by TLS, with the picker's watch."""
    files = {"front_cert": directory / "tls.crt", "front_key": directory / "tls.key"}
    async with rig(answer_json, answer_json, **files) as made:
        settings = FrontTls(**files).added_to(FrontSettings(listen=":0", run_dir=made.picker.run_dir))
        watch = asyncio.create_task(certificate_files(settings)[0].run())
        try:
            yield made
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)


REQUEST = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nx-agentserving-program-id: p\r\n\r\n{}"
)  # fmt: skip


async def call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One call; fails unless it is answered."""
    writer.write(REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    assert await reader.readexactly(2) == b"{}"


class Load:
    """Calls on connections that stay, and on new ones, until it is stopped."""

    def __init__(self, port: int) -> None:
        self._port, self._running, self.calls, self.connections = port, True, 0, 0

    async def stay(self) -> None:
        reader, writer = await connect(self._port, trusting(None))
        while self._running:
            await call(reader, writer)
            self.calls += 1
        writer.close()

    async def come(self) -> None:
        while self._running:
            reader, writer = await connect(self._port, trusting(None))
            await call(reader, writer)
            self.calls += 1
            self.connections += 1
            writer.close()

    def stop(self) -> None:
        self._running = False


@pytest.mark.parametrize("renew", [write, write_as_a_secret])
async def test_a_renewed_certificate_is_in_use_soon_and_costs_no_call(tmp_path: Path, renew: object) -> None:
    assert callable(renew)
    key, cert = a_pair()
    renew(tmp_path, key, cert)
    async with front(tmp_path) as made:
        assert normal(await served_certificate(made.port)) == normal(cert)
        load = Load(made.port)
        async with asyncio.TaskGroup() as group:
            for work in (load.stay, load.stay, load.come, load.come):
                group.create_task(work())
            for _ in range(3):
                await until(lambda before=load.connections: load.connections > before + 10)
                key, cert = a_pair()
                renew(tmp_path, key, cert)
                async with asyncio.timeout(IN_FORCE_S):
                    while normal(await served_certificate(made.port)) != normal(cert):
                        await asyncio.sleep(0.05)
            await until(lambda before=load.calls: load.calls > before + 20)
            load.stop()
        assert load.calls > 50


async def test_clients_choose_http_1_1_or_http_2_and_tls_1_2_or_1_3(tmp_path: Path) -> None:
    key, cert = a_pair()
    write(tmp_path, key, cert)
    async with front(tmp_path) as made:
        for offered, chosen in ((("h2", "http/1.1"), "h2"), (("http/1.1",), "http/1.1"), ((), None)):
            reader, writer = await connect(made.port, trusting(cert, *offered))
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == chosen
            if chosen == "h2":
                writer.write(H2_HELLO)
                frame = await reader.readexactly(9)
                assert frame[3] == H2_SETTINGS
            else:
                await call(reader, writer)
            writer.close()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = trusting(cert)
            context.minimum_version = context.maximum_version = version
            reader, writer = await connect(made.port, context)
            await call(reader, writer)
            writer.close()


async def test_requests_in_the_clear_get_nothing(tmp_path: Path) -> None:
    write(tmp_path, *a_pair())
    async with front(tmp_path) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(REQUEST)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert [request for engine in made.engines for request in engine.requests] == []


@pytest.mark.parametrize("broken", ["another key", "no certificate", "gone"])
async def test_a_certificate_that_cannot_be_used_leaves_the_previous_one(tmp_path: Path, broken: str) -> None:
    key, cert = a_pair()
    write(tmp_path, key, cert)
    async with front(tmp_path) as made:
        assert normal(await served_certificate(made.port)) == normal(cert)
        settings = FrontSettings(
            listen=":0", run_dir=made.picker.run_dir, front_cert=tmp_path / "tls.crt", front_key=tmp_path / "tls.key"
        )  # fmt: skip
        (watch,) = certificate_files(settings)
        if broken == "another key":
            (tmp_path / "tls.key").write_bytes(a_pair()[0])
        elif broken == "no certificate":
            (tmp_path / "tls.crt").write_text("not PEM")
        else:
            (tmp_path / "tls.crt").unlink()
        before = settings.front_secret.stat().st_ino
        watch.look()
        watch.look()
        # Envoy is not told of it.
        assert settings.front_secret.stat().st_ino == before
        assert normal(await served_certificate(made.port)) == normal(cert)
        key, cert = a_pair()
        write(tmp_path, key, cert)
        async with asyncio.timeout(IN_FORCE_S):
            while normal(await served_certificate(made.port)) != normal(cert):
                await asyncio.sleep(0.05)


def test_a_front_does_not_start_with_a_certificate_that_cannot_be_used(tmp_path: Path) -> None:
    write(tmp_path, a_pair()[0], a_pair()[1])
    files = {"front_cert": tmp_path / "tls.crt", "front_key": tmp_path / "tls.key"}
    settings = FrontSettings(listen=":0", run_dir=tmp_path / "run", **files)
    with pytest.raises(ValueError, match=r"tls\.crt, .*tls\.key: not a certificate and its private key"):
        command(settings, envoy="/opt/envoy", workers=1)
    (tmp_path / "tls.key").unlink()
    with pytest.raises(ValueError, match=r"tls\.key: No such file"):
        command(settings, envoy="/opt/envoy", workers=1)
    with pytest.raises(ValueError, match="--front-cert and --front-key"):
        FrontTls(front_cert=tmp_path / "tls.crt")
