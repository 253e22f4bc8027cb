"""An engine that leaves lets its calls end, and only its own pod may ask it to."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from agentserving.contract.channel import EngineHello, Load
from agentserving_engine.channel_server import ChannelServer
from agentserving_sidecar.draining import may_drain
from agentserving_sidecar.http_front import http_app
from agentserving_sidecar.journal import Journal
from agentserving_sidecar.progress_probe import Progress
from agentserving_sidecar.sidecar import Sidecar
from aiohttp import web


def hello(boot_id: str) -> EngineHello:
    return EngineHello(
        boot_id=boot_id, pid=1, engine_kind="SIMULATOR", engine_version="0", plugin_version="0", max_num_seqs=8,
        max_model_len=8192, block_size=16, num_blocks=1000, data_parallel_size=1, async_scheduling=False,
        policy_version=0,
    )  # fmt: skip


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    journal = Journal(tmp_path / "journal")
    made = Sidecar("e1", "127.0.0.1:9", "127.0.0.1:9", journal, Progress(5_000_000))
    made.engine_hello(0, hello("b1"))
    yield made
    journal.close()


@pytest.fixture
async def drain_url(sidecar: Sidecar) -> AsyncIterator[str]:
    async with aiohttp.ClientSession() as session:
        runner = web.AppRunner(http_app(sidecar, session, drain_s=30))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/drain"
        await runner.cleanup()


async def test_the_hook_is_answered_when_the_engine_has_nothing_left_to_do(sidecar: Sidecar, drain_url: str) -> None:
    sidecar.load = Load(running=1)
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        asked = asyncio.create_task(session.get(drain_url))
        while not sidecar.draining:
            await asyncio.sleep(0.01)
        # Longer than it takes to look again.
        done, _ = await asyncio.wait([asked], timeout=0.2)
        assert not done
        sidecar.load = Load()
        async with await asked as answer:
            assert (answer.status, await answer.text()) == (200, "drained\n")


@pytest.mark.parametrize(
    ("remote", "may"), [("127.0.0.1", True), ("::1", True), ("10.244.1.7", False), (None, False), ("", False)]
)
def test_only_the_pod_itself_may_drain_its_engine(remote: str | None, may: bool) -> None:
    assert may_drain(remote) is may


def test_an_engine_that_boots_anew_takes_programs_again(sidecar: Sidecar) -> None:
    sidecar.drain()
    sidecar.engine_hello(0, hello("b2"))
    assert not sidecar.draining


def test_a_sidecar_that_leaves_goes_on_draining_whatever_boots(sidecar: Sidecar) -> None:
    sidecar.leave()
    sidecar.engine_hello(0, hello("b2"))
    assert sidecar.draining


def test_a_sidecar_of_the_same_group_may_use_the_channel(tmp_path: Path) -> None:
    channel = ChannelServer(tmp_path / "rank0.sock", hello("b1"), lambda: [])
    assert stat.S_IMODE((tmp_path / "rank0.sock").stat().st_mode) == 0o660
    channel.close()
