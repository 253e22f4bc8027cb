"""The page's server gives data only to who has the token, from this machine; and the page, in a real Chromium."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agentserving import Client
from agentserving.contract.phases import PhaseKind, PrefixMiss
from agentserving.contract.service_class import ServiceClass
from agentserving_cli.connection import reason_of
from agentserving_cli.ui.server import TOKEN_HEADER, Server, Source
from agentserving_controlplane.table.process_table import ProcessTable
from cli.ui.chromium import CHROMIUM, opened
from controlplane.table_builders import S, admit, at, open_program, report_of
from support.served_plane import ServedPlane

BEGIN = 1_700_000_000 * S
PHASES = ((PhaseKind.QUEUE, 2 * S), (PhaseKind.PREFILL, S // 2), (PhaseKind.DECODE, 3 * S), (PhaseKind.PREEMPTED, S))


def call(table: ProcessTable, program: str, begin: int, miss: PrefixMiss = PrefixMiss.NONE) -> None:
    made = admit(table, program, now=BEGIN + begin * S)
    report = report_of(
        made, program, phases=PHASES, prefix_miss=miss, common_tokens=512, cached_tokens=512, prompt_tokens=600
    )
    table.report(report, at(BEGIN + (begin + 7) * S))


def fill(table: ProcessTable) -> None:
    open_program(table, "run", name="<img src=x onerror=alert(1)>", now=BEGIN)
    open_program(table, "run/sub", parent="run", now=BEGIN + S)
    open_program(table, "other", service_class=ServiceClass.BATCH, now=BEGIN)
    call(table, "run", 0)
    call(table, "run", 10, PrefixMiss.DIVERGED)
    call(table, "run/sub", 5)
    call(table, "other", 3)


@asynccontextmanager
async def served() -> AsyncIterator[Server]:
    """The page's server before a control plane with two programs and a sub-agent."""
    async with ServedPlane() as plane:
        engine = await plane.attach("e1")
        fill(plane.plane.table)
        with Client(f"127.0.0.1:{plane.port}") as client:
            server = Server(Source(client), lambda error: reason_of(error, client.address))
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield server
            finally:
                await asyncio.to_thread(server.shutdown)
                server.server_close()
                engine.stream.cancel()


def read(server: Server, path: str, **headers: str) -> tuple[int, Any, dict[str, str]]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


async def get(
    server: Server, path: str, *, token: str | None = None, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    token = server.token if token is None else token
    return await asyncio.to_thread(lambda: read(server, path, **{TOKEN_HEADER: token, **headers}))


@pytest.mark.parametrize("path", ["/api/programs", "/api/cluster", "/api/trace/run"])
async def test_data_needs_the_token_and_this_machines_name(path: str) -> None:
    async with served() as server:
        assert (await get(server, path))[0] == 200
        for refused in (
            await get(server, path, token=""),
            await get(server, path, token="x" * len(server.token)),
            await get(server, path, Host="agentserving.example.com"),
        ):
            assert refused[0] == 403
            assert b"run" not in refused[1].replace(b"agentserving ui", b"")


async def test_files_of_the_page_may_load_nothing_from_elsewhere() -> None:
    async with served() as server:
        for path in ("/", "/ui.js", "/gantt.js", "/ui.css"):
            status, body, headers = await get(server, path, token="")
            assert status == 200
            assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
            # The one address is the name of SVG's elements.
            assert body.replace(b"http://www.w3.org/2000/svg", b"").count(b"http://") == 0
            assert body.count(b"https://") == 0
        assert (await get(server, "/api/../server.py"))[0] == 404


async def test_errors_of_the_control_plane_are_one_line() -> None:
    async with served() as server:
        status, body, _ = await get(server, "/api/trace/nothing")
        assert (status, json.loads(body)["error"]) == (502, "no program 'nothing': open it first")


async def test_each_program_has_its_class_of_service() -> None:
    async with served() as server:
        _, body, _ = await get(server, "/api/programs")
    classes = {program["id"]: program["service"] for program in json.loads(body)["programs"]}
    assert classes == {"run": "standard", "run/sub": "standard", "other": "batch"}


async def test_a_trace_has_programs_calls_and_parts() -> None:
    async with served() as server:
        _, body, _ = await get(server, "/api/trace/run")
    trace = json.loads(body)
    assert [program["id"] for program in trace["programs"]] == ["run", "run/sub"]
    first = trace["programs"][0]["calls"][0]
    assert [part[0] for part in first["parts"]] == ["queue", "prefill", "decode", "preempted", "reported"]
    assert trace["programs"][0]["calls"][1]["prefix"] == "diverged at 512"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize("dark", [False, True])
async def test_the_page_shows_programs_as_a_tree_and_the_selected_run(dark: bool, tmp_path: Path) -> None:
    async with served() as server, opened(server.url, dark=dark) as page:
        await page.until("document.querySelectorAll('.program[data-id]').length === 3", "the list")
        assert await page.value("document.querySelector('[data-id=\"run/sub\"]').getAttribute('aria-level')") == "2"
        assert "batch" in await page.value("document.querySelector('[data-id=\"other\"]').textContent")
        assert "token" not in await page.value("location.href")
        await page.key("/")
        await page.send("Input.insertText", text="sub")
        await page.until("document.querySelectorAll('.program[data-id]').length === 2", "the match and its parent")
        await page.key("Enter")
        await page.key("j")
        await page.until("document.querySelectorAll('svg rect.hit').length === 3", "the calls of the run")
        shown = await page.value("document.getElementById('run').textContent")
        for words in ("<img src=x onerror=alert(1)>", "diverged at 512", "1 diverged", "queue", "run/sub"):
            assert words in shown
        assert await page.value("document.querySelectorAll('#run img').length") == 0
        assert "class standard" in shown
        assert "policy plas" in await page.value("document.getElementById('cluster').textContent")
        await page.value("document.querySelector('svg rect.hit').dispatchEvent(new MouseEvent('click'))")
        await page.until("document.getElementById('call')", "details of a call")
        await page.key("+")
        background = await page.value("getComputedStyle(document.body).backgroundColor")
        await page.key("t")
        assert await page.value("getComputedStyle(document.body).backgroundColor") != background
        await page.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000
        assert page.errors == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
async def test_the_page_without_the_token_says_what_to_do() -> None:
    async with served() as server, opened(server.url.partition("#")[0]) as page:
        await page.until("!document.getElementById('error').hidden", "the message")
        assert "open the URL that" in await page.value("document.getElementById('error').textContent")
