"""Calls reach engines by TLS: verified by the cluster's CA and by a name that only engines have; retries as before."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agentserving.contract.names import ENGINE_NAME, SIDECAR_NAME
from agentserving_gateway.certificate_files import FrontTls, certificate_files
from agentserving_gateway.envoy import FrontSettings
from agentserving_gateway.front import command
from gateway.gateway_rig import Rig, rig
from support.certificate_files import CertificateFiles

PROGRAM = "x-agentserving-program-id: p\r\n"
MODELS = b'{"object": "list", "data": [{"id": "tiny"}]}'
# A new CA is trusted within this time.
IN_FORCE_S = 5.0


async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The rig's engines take one request a connection."""
    body = MODELS if request.startswith(b"GET ") else b"{}"
    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    await writer.drain()


async def fail(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
    await writer.drain()


def made(directory: Path) -> CertificateFiles:
    return CertificateFiles(directory, {"engine": [ENGINE_NAME], "sidecar": [SIDECAR_NAME], "other": ["localhost"]})


def server(files: CertificateFiles, leaf: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    paths = files.paths(leaf)
    context.load_cert_chain(paths["cert"], paths["key"])
    return context


def status(text: bytes) -> int:
    return int(text.split(b" ")[1])


@asynccontextmanager
async def front(ca: Path, tls: ssl.SSLContext, *scripts: object) -> AsyncIterator[Rig]:
    """A rig with the picker's watch."""
    async with rig(*(scripts or (answer, answer)), engine_tls=tls, engine_ca=ca) as found:  # type: ignore[arg-type]
        settings = FrontTls(engine_ca=ca).added_to(FrontSettings(listen=":0", run_dir=found.picker.run_dir))
        (files,) = certificate_files(settings)
        watch = asyncio.create_task(files.run())
        try:
            yield found
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)


async def test_calls_and_lists_of_models_reach_engines_by_tls(tmp_path: Path) -> None:
    files = made(tmp_path)
    async with front(files.paths("engine")["ca"], server(files, "engine")) as found:
        assert status(await found.post(headers=PROGRAM)) == 200
        listed = await found.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        assert json.loads(listed.partition(b"\r\n\r\n")[2])["data"] == [{"id": "tiny"}]
        # A response's holder is asked for by the picker itself.
        assert status(await found.send(b"GET /v1/responses/resp_x HTTP/1.1\r\nhost: x\r\n\r\n")) == 200
        assert len([each for engine in found.engines for each in engine.requests]) >= 4


async def test_a_call_is_tried_on_another_engine_when_the_first_one_fails(tmp_path: Path) -> None:
    files = made(tmp_path)
    async with front(files.paths("engine")["ca"], server(files, "engine")) as found:
        found.play(fail, answer)
        for number in range(4):
            assert status(await found.post(headers=f"x-agentserving-program-id: p{number}\r\n")) == 200
        # It was asked.
        assert found.engines[0].requests


@pytest.mark.parametrize("impostor", ["sidecar", "other", "stranger"])
async def test_who_has_no_engines_certificate_gets_no_prompt(tmp_path: Path, impostor: str) -> None:
    files, strangers = made(tmp_path / "ours"), made(tmp_path / "theirs")
    tls = server(strangers, "engine") if impostor == "stranger" else server(files, impostor)
    with contextlib.suppress(ConnectionError):
        async with front(files.paths("engine")["ca"], tls) as found:
            assert status(await found.post(headers=PROGRAM)) in (502, 503)
            assert status(await found.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")) == 503
            assert [each for engine in found.engines for each in engine.requests] == []


async def test_a_new_ca_is_trusted_without_a_restart(tmp_path: Path) -> None:
    files = made(tmp_path)
    ca = files.paths("engine")["ca"]
    old = files.signer
    tls = server(files, "engine")
    async with front(ca, tls) as found:
        assert status(await found.post(headers=PROGRAM)) == 200
        # Announced, then it signs.
        files.signer = files.new_ca()
        files.sign(trusted=(old,))
        paths = files.paths("engine")
        tls.load_cert_chain(paths["cert"], paths["key"])
        async with asyncio.timeout(IN_FORCE_S):
            while status(await found.post(headers=PROGRAM)) != 200:
                await asyncio.sleep(0.05)
        assert status(await found.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")) == 200


def test_a_front_does_not_start_with_a_ca_that_is_none(tmp_path: Path) -> None:
    settings = FrontSettings(listen=":0", run_dir=tmp_path / "run", engine_ca=tmp_path / "ca.crt")
    with pytest.raises(ValueError, match=r"ca\.crt: No such file"):
        command(settings, envoy="/opt/envoy", workers=1)
    (tmp_path / "ca.crt").write_text("none")
    with pytest.raises(ValueError, match=r"ca\.crt: not a CA's certificate"):
        command(settings, envoy="/opt/envoy", workers=1)
