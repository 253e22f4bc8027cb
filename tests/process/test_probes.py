"""Probes answer from the process's state; a port that cannot be opened is a reason to say so."""

from __future__ import annotations

import socket
from pathlib import Path

import aiohttp
import grpc
import pytest
from agentserving_cli.local.ports import free_ports
from agentserving_process import probes
from agentserving_process.addresses import split_address
from agentserving_process.listening import listen, reachable, why_not
from agentserving_process.probes import Answer, ProbeOptions
from agentserving_process.supervision import CannotStartError
from aiohttp import web


async def get(port: int, path: str, authorization: str = "") -> tuple[int, str]:
    url, headers = f"http://127.0.0.1:{port}{path}", {"authorization": authorization} if authorization else {}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.text()


async def test_probes_answer_from_the_state_of_the_process() -> None:
    state = Answer(False, "no engine yet")
    options = ProbeOptions(http_port=free_ports(1)[0])
    async with probes.served(probes.application(ready=lambda: state), options):
        assert await get(options.http_port, "/healthz") == (200, "ok\n")
        assert await get(options.http_port, "/readyz") == (503, "no engine yet\n")
        state = Answer(True, "ok: leading")
        assert await get(options.http_port, "/readyz") == (200, "ok: leading\n")
        assert "agentserving_task_restarts_total" in (await get(options.http_port, "/metrics"))[1]


async def test_a_probe_that_raises_is_not_ready() -> None:
    def broken() -> Answer:
        raise ValueError("x")

    options = ProbeOptions(http_port=free_ports(1)[0])
    async with probes.served(probes.application(ready=broken), options):
        assert await get(options.http_port, "/readyz") == (503, "the probe failed: ValueError: x\n")


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = ProbeOptions(http_port=taken.getsockname()[1])
        with pytest.raises(CannotStartError, match=rf"127.0.0.1:{options.http_port}: Address already in use$"):
            async with probes.served(probes.application(), options):
                pass


async def test_why_a_grpc_port_cannot_be_opened_is_said() -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CannotStartError, match="already in use"):
            listen(server, f"127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(CannotStartError, match=r"no\.such\.host\.invalid:1: (?!.*in use)"):
        listen(server, "no.such.host.invalid:1")
    assert listen(server, "127.0.0.1:0") > 0
    await server.stop(0)


def test_addresses_are_split_and_bad_ones_named() -> None:
    assert split_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert split_address("[::1]:80") == ("::1", 80)
    assert split_address(":80") == ("", 80)
    for bad in ("80", "host:", "host:http", "::1:80", "host:70000"):
        with pytest.raises(ValueError, match="is not an address"):
            split_address(bad)
    assert "is not an address" in why_not("nonsense")


def test_a_wildcard_is_reached_by_the_host_s_name() -> None:
    assert reachable("0.0.0.0:7070") == f"{socket.gethostname()}:7070"
    assert reachable("[::]:7070") == f"{socket.gethostname()}:7070"
    assert reachable("10.0.0.1:7070") == "10.0.0.1:7070"


async def test_with_a_token_metrics_need_it_and_probes_do_not(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="more metrics")

    options = ProbeOptions(http_port=free_ports(1)[0], metrics_token_file=file)
    async with probes.served(probes.application(routes=[web.get("/engine/metrics", page)]), options):
        for path in ("/healthz", "/readyz"):
            assert (await get(options.http_port, path))[0] == 200
        for path in ("/metrics", "/engine/metrics", "/nothing"):
            for wrong in ("", "Bearer", "Bearer wrong", "Basic s3cret", "s3cret", "Bearer s3cret\xff"):
                assert (await get(options.http_port, path, wrong))[0] == 401, (path, wrong)
        assert (await get(options.http_port, "/engine/metrics", "bearer s3cret")) == (200, "more metrics")
        file.write_text("another")
        assert (await get(options.http_port, "/metrics", "Bearer s3cret"))[0] == 401
        assert (await get(options.http_port, "/metrics", "Bearer another"))[0] == 200
        file.unlink()
        assert (await get(options.http_port, "/metrics", "Bearer "))[0] == 401, "without a token nobody may read"


def test_a_process_does_not_start_with_an_empty_token(tmp_path: Path) -> None:
    for file in (tmp_path / "missing", tmp_path / "empty"):
        (tmp_path / "empty").write_text("\n")
        with pytest.raises(ValueError, match=f"{file.name} has no token, or cannot be read"):
            ProbeOptions(metrics_token_file=file)
