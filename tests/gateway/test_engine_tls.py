"""Calls reach engines by TLS: verified by the cluster's CA and by each engine's own name; retries as before."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agentserving.contract.names import SIDECAR_NAME, engine_name
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
    """What vLLM says to each, and the end of the connection: the next call shakes hands again."""
    body = MODELS if request.startswith(b"GET ") else b"{}"
    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    await writer.drain()


async def fail(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
    await writer.drain()


def made(directory: Path) -> CertificateFiles:
    """Certificates of the rig's engines and of others; engines also have the names that they have in a cluster."""
    engines = {each: [SIDECAR_NAME, engine_name(each)] for each in ("e0", "e1")}
    return CertificateFiles(directory, {**engines, "sidecar": [SIDECAR_NAME], "other": ["localhost"], "client": []})


def server(files: CertificateFiles, leaf: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    paths = files.paths(leaf)
    context.load_cert_chain(paths["cert"], paths["key"])
    return context


def servers(files: CertificateFiles) -> Callable[[str], ssl.SSLContext]:
    """Each engine with its own certificate."""
    return lambda name: server(files, name)


def status(text: bytes) -> int:
    return int(text.split(b" ")[1])


@asynccontextmanager
async def front(
    tls: Callable[[str], ssl.SSLContext], *, ca: Path, cert: Path | None = None, key: Path | None = None
) -> AsyncIterator[Rig]:
    """A rig of two engines with the picker's watches."""
    given = FrontTls(engine_ca=ca, engine_cert=cert, engine_key=key)
    flags = {"engine_ca": ca, "engine_cert": cert, "engine_key": key}
    async with rig(answer, answer, engine_tls=tls, **flags) as found:
        settings = given.added_to(FrontSettings(listen=":0", run_dir=found.picker.run_dir))
        watches = [asyncio.create_task(files.run()) for files in certificate_files(settings)]
        try:
            yield found
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)


async def test_calls_and_lists_of_models_reach_engines_by_tls(tmp_path: Path) -> None:
    files = made(tmp_path)
    async with front(servers(files), ca=files.paths("e0")["ca"]) as found:
        assert status(await found.post(headers=PROGRAM)) == 200
        listed = await found.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        assert json.loads(listed.partition(b"\r\n\r\n")[2])["data"] == [{"id": "tiny"}]
        # A response's holder is asked for by the picker itself.
        assert status(await found.send(b"GET /v1/responses/resp_x HTTP/1.1\r\nhost: x\r\n\r\n")) == 200
        assert len([each for engine in found.engines for each in engine.requests]) >= 4


async def test_a_call_is_tried_on_another_engine_when_the_first_one_fails(tmp_path: Path) -> None:
    files = made(tmp_path)
    async with front(servers(files), ca=files.paths("e0")["ca"]) as found:
        found.play(fail, answer)
        for number in range(4):
            assert status(await found.post(headers=f"x-agentserving-program-id: p{number}\r\n")) == 200
        # It was asked.
        assert found.engines[0].requests


@pytest.mark.parametrize("impostor", ["sidecar", "other", "stranger", "another engine"])
async def test_who_has_not_the_engines_certificate_gets_no_prompt(tmp_path: Path, impostor: str) -> None:
    files, strangers = made(tmp_path / "ours"), made(tmp_path / "theirs")
    swapped = {"e0": "e1", "e1": "e0"}

    def tls(name: str) -> ssl.SSLContext:
        if impostor == "stranger":
            return server(strangers, name)
        return server(files, swapped[name] if impostor == "another engine" else impostor)

    with contextlib.suppress(ConnectionError):
        async with front(tls, ca=files.paths("e0")["ca"]) as found:
            assert status(await found.post(headers=PROGRAM)) in (502, 503)
            assert status(await found.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")) == 503
            assert [each for engine in found.engines for each in engine.requests] == []


async def test_a_new_ca_is_trusted_without_a_restart(tmp_path: Path) -> None:
    files = made(tmp_path)
    old = files.signer
    tls = {name: server(files, name) for name in ("e0", "e1")}
    async with front(tls.__getitem__, ca=files.paths("e0")["ca"]) as found:
        assert status(await found.post(headers=PROGRAM)) == 200
        # Announced, then it signs.
        files.signer = files.new_ca()
        files.sign(trusted=(old,))
        for name, context in tls.items():
            context.load_cert_chain(files.paths(name)["cert"], files.paths(name)["key"])
        async with asyncio.timeout(IN_FORCE_S):
            while status(await found.post(headers=PROGRAM)) != 200:
                await asyncio.sleep(0.05)
        assert status(await found.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")) == 200


def asking(files: CertificateFiles) -> Callable[[str], ssl.SSLContext]:
    """Engines that serve nobody without a certificate of their CA."""

    def made(name: str) -> ssl.SSLContext:
        context = server(files, name)
        context.load_verify_locations(files.paths(name)["ca"])
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    return made


async def test_engines_that_ask_for_a_certificate_are_shown_the_gateways_and_a_renewed_one(tmp_path: Path) -> None:
    files = made(tmp_path)
    async with front(asking(files), **files.paths("client")) as found:
        assert status(await found.post(headers=PROGRAM)) == 200
        listed = await found.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        assert json.loads(listed.partition(b"\r\n\r\n")[2])["data"] == [{"id": "tiny"}]
        assert status(await found.send(b"GET /v1/responses/resp_x HTTP/1.1\r\nhost: x\r\n\r\n")) == 200
        shown: list[bytes] = []

        async def look(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            shown.append(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
            await answer(request, reader, writer)

        found.play(look, look)
        assert status(await found.post(headers=PROGRAM)) == 200
        files.sign()
        async with asyncio.timeout(IN_FORCE_S):
            while shown[-1] == shown[0]:
                assert status(await found.post(headers=PROGRAM)) == 200
        assert shown[-1] == ssl.PEM_cert_to_DER_cert(files.paths("client")["cert"].read_text())


async def test_without_a_certificate_nothing_reaches_an_engine_that_asks_for_one(tmp_path: Path) -> None:
    files = made(tmp_path)
    with contextlib.suppress(ConnectionError):
        async with front(asking(files), ca=files.paths("client")["ca"]) as found:
            assert status(await found.post(headers=PROGRAM)) in (502, 503)
            assert status(await found.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")) == 503
            assert [each for engine in found.engines for each in engine.requests] == []


def test_flags_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--engine-cert and --engine-key"):
        FrontTls(engine_ca=tmp_path / "ca", engine_cert=tmp_path / "cert")
    with pytest.raises(ValueError, match="--engine-ca is needed"):
        FrontTls(engine_cert=tmp_path / "cert", engine_key=tmp_path / "key")


def test_a_front_does_not_start_with_a_ca_that_is_none(tmp_path: Path) -> None:
    settings = FrontSettings(listen=":0", run_dir=tmp_path / "run", engine_ca=tmp_path / "ca.crt")
    with pytest.raises(ValueError, match=r"ca\.crt: No such file"):
        command(settings, envoy="/opt/envoy", workers=1)
    (tmp_path / "ca.crt").write_text("none")
    with pytest.raises(ValueError, match=r"ca\.crt: not a CA's certificate"):
        command(settings, envoy="/opt/envoy", workers=1)
