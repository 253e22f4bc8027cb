"""An engine that drains lets its calls end, and only its own pod may ask it to."""

from __future__ import annotations

import asyncio
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from agentserving.contract.channel import Load
from agentserving_engine.channel_server import ChannelServer
from agentserving_operator.manifests.engine_pod import CHANNEL_DIR, DRAIN
from agentserving_sidecar.draining import SOCKET_NAME, drain_socket
from agentserving_sidecar.health import FrontState
from agentserving_sidecar.http_front import http_app
from aiohttp import web
from sidecar.ports import Rig, hello, report, running_sidecar, until
from support.eventually import DEADLINE_S


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running_sidecar(tmp_path / "journal") as rig:
        yield rig


@pytest.fixture
async def url(rig: Rig) -> AsyncIterator[str]:
    runner = web.AppRunner(http_app(rig.sidecar))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_the_pods_hook_returns_when_the_engine_has_nothing_left_to_do(rig: Rig, tmp_path: Path) -> None:
    rig.sidecar.engine_report(report(load=Load(running=1)))
    hook = DRAIN.replace(CHANNEL_DIR, str(tmp_path))
    async with drain_socket(rig.sidecar, tmp_path, 30), asyncio.timeout(DEADLINE_S):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", hook)
        await until(lambda: rig.sidecar.draining)
        # Longer than it takes to look again.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.wait()), 0.2)
        rig.sidecar.engine_report(report(load=Load()))
        assert await process.wait() == 0
    assert not (tmp_path / SOCKET_NAME).exists()


async def test_only_who_may_open_the_engines_directory_may_drain_it(rig: Rig, url: str, tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/drain") as response:
        assert response.status == 404
    async with drain_socket(rig.sidecar, tmp_path, 30):
        assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o660
    assert not rig.sidecar.draining


async def test_readiness_is_what_the_leader_is_told(rig: Rig, url: str) -> None:
    async with aiohttp.ClientSession() as session:

        async def readyz() -> tuple[int, str]:
            async with session.get(f"{url}/readyz") as response:
                return response.status, await response.text()

        assert await readyz() == (200, "ok\n")
        rig.sidecar.front_answered(FrontState.UNHEALTHY, "/health: HTTP 503")
        health = rig.leader.reports[-1].health
        assert await readyz() == (503, f"down: {health.reason}\n")
        assert "HTTP 503" in health.reason
        rig.sidecar.front_answered(FrontState.HEALTHY, "")
        rig.sidecar.drain()
        assert await readyz() == (503, "draining\n")


async def test_metrics_name_the_health_and_the_journal(rig: Rig, url: str) -> None:
    rig.sidecar.engine_hello(msgspec.structs.replace(hello(), retention_obstacle="kv_layout"))
    rig.sidecar.engine_report(report(load=Load(running=3, rejected_tickets=2)))
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    for line in (
        'agentserving_sidecar_engine_health{state="serving"} 1.0',
        'agentserving_sidecar_engine_health{state="down"} 0.0',
        "agentserving_sidecar_engine_stuck 0.0", "agentserving_sidecar_attached 1.0",
        "agentserving_sidecar_unacked_reports 0.0",
        'agentserving_engine_policy_obstacle{feature="retention",reason="kv_layout"} 1.0',
        "agentserving_engine_running_calls 3.0", "agentserving_engine_rejected_tickets_total 2.0",
    ):  # fmt: skip
        assert line in lines
    # A counter of the whole process.
    assert any(line.startswith("agentserving_sidecar_journal_write_failures_total ") for line in lines)


async def test_an_engine_that_boots_again_takes_programs_again(rig: Rig) -> None:
    rig.sidecar.drain()
    rig.sidecar.engine_hello(hello("b2"))
    assert not rig.sidecar.draining


async def test_a_sidecar_that_is_about_to_end_drains_whatever_boots(rig: Rig) -> None:
    rig.sidecar.leave()
    rig.sidecar.engine_hello(hello("b2"))
    assert rig.sidecar.draining


def test_a_sidecar_of_the_same_group_may_use_the_channel(tmp_path: Path) -> None:
    channel = ChannelServer(tmp_path / "rank0.sock", hello("b1"), list)
    assert stat.S_IMODE((tmp_path / "rank0.sock").stat().st_mode) == 0o660
    channel.close()
