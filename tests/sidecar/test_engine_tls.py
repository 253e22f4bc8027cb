"""The sidecar reaches its engine by TLS, takes nobody else for it, and shows its own certificate if it is asked."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from agentserving.contract.names import SIDECAR_NAME, engine_name
from agentserving_process.engine_tls import EngineTls
from agentserving_process.supervision import CannotStartError
from agentserving_sidecar.engine_http import EngineHttp, ModelsUnknownError
from agentserving_sidecar.health import FrontState
from aiohttp import web
from support.certificate_files import CertificateFiles


async def healthy(_: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "tiny"}]})


async def served(files: CertificateFiles, leaf: str, *, asks: bool = False) -> tuple[web.AppRunner, str]:
    """An engine's HTTP front with a certificate: its runner and address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.paths(leaf)["cert"], files.paths(leaf)["key"])
    if asks:
        context.load_verify_locations(files.paths(leaf)["ca"])
        context.verify_mode = ssl.CERT_REQUIRED
    app = web.Application()
    app.add_routes([web.get("/health", healthy), web.get("/v1/models", healthy), web.get("/metrics", healthy)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    return runner, f"127.0.0.1:{runner.addresses[0][1]}"


async def test_health_models_and_metrics_come_by_tls_from_the_engine_only(tmp_path: Path) -> None:
    files = CertificateFiles(
        tmp_path, {"engine": [engine_name("e0")], "other": [engine_name("e1")], "sidecar": [SIDECAR_NAME]}
    )
    tls = EngineTls(files.paths("engine")["ca"])
    for leaf in ("engine", "other", "sidecar"):
        runner, address = await served(files, leaf)
        async with EngineHttp(address, tls=tls, engine_id="e0") as engine:
            if leaf == "engine":
                assert await engine.front() == (FrontState.HEALTHY, "")
                assert await engine.models() == ("tiny",)
                assert (await engine.metrics())[0] == 200
            else:
                assert (await engine.front())[0] is not FrontState.HEALTHY
                with pytest.raises(ModelsUnknownError):
                    await engine.models()
                assert (await engine.metrics())[0] == 502
        await runner.cleanup()


async def test_an_engine_that_asks_for_a_certificate_serves_its_own_sidecar(tmp_path: Path) -> None:
    files = CertificateFiles(tmp_path, {"engine": [SIDECAR_NAME, engine_name("e0")]})
    runner, address = await served(files, "engine", asks=True)
    # In a pod both have the same certificate.
    async with EngineHttp(address, tls=EngineTls(**files.paths("engine")), engine_id="e0") as engine:
        assert await engine.front() == (FrontState.HEALTHY, "")
    async with EngineHttp(address, tls=EngineTls(files.paths("engine")["ca"]), engine_id="e0") as engine:
        assert (await engine.front())[0] is not FrontState.HEALTHY
    await runner.cleanup()


async def test_a_new_ca_is_read_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    files = CertificateFiles(tmp_path, {"engine": [engine_name("e0")]})
    ca = files.paths("engine")["ca"]
    tls, before = EngineTls(ca), ca.read_bytes()
    first = tls.options("e0")["ssl"]
    ca.write_text("none")
    assert tls.options("e0")["ssl"] is first
    ca.write_bytes(before)
    assert tls.options("e0")["ssl"] is first
    ca.write_bytes(files.new_ca().cert)
    assert tls.options("e0")["ssl"] is not first
    with pytest.raises(CannotStartError, match=r"--engine-ca: .*missing"):
        EngineTls(tmp_path / "missing")
    assert EngineTls().options("e0") == {}
    assert EngineTls().url("a:1", "/x") == "http://a:1/x"
