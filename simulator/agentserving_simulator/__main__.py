"""``python -m agentserving_simulator``: a simulated engine that serves until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import uuid

from agentserving.contract.channel import EngineHello
from agentserving_engine.call_book import CallBook
from agentserving_engine.channel_server import ChannelServer
from agentserving_engine.settings import PluginConfigError, PluginSettings
from aiohttp import web

from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.engine import Limits, SimulatedEngine
from agentserving_simulator.http_front import Front

VERSION = "0.1.0"


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agentserving_simulator", description=__doc__)
    parser.add_argument("--listen", required=True, help="host:port of the OpenAI paths")
    parser.add_argument("--engine-id", required=True)
    parser.add_argument("--channel-dir", default="", help="directory shared with the sidecar")
    parser.add_argument("--ticket-key-file", default="")
    parser.add_argument("--model", default="tiny", help="name it serves under")
    parser.add_argument("--max-num-seqs", type=int, default=Limits().max_num_seqs)
    parser.add_argument("--num-blocks", type=int, default=Limits().num_blocks)
    parser.add_argument("--max-model-len", type=int, default=Limits().max_model_len)
    parser.add_argument("--speed", type=float, default=1.0, help="times as fast as an A100 with an 8B model")
    given = parser.parse_args(argv)
    for name in ("max_num_seqs", "num_blocks", "max_model_len", "speed"):
        if getattr(given, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be positive, not {getattr(given, name)}")
    return given


def _hello(limits: Limits) -> EngineHello:
    return EngineHello(
        boot_id=uuid.uuid4().hex,
        pid=os.getpid(),
        rank=0,
        engine_kind="SIMULATOR",
        engine_version=VERSION,
        plugin_version=VERSION,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        block_size=limits.block_size,
        num_blocks=limits.num_blocks,
        data_parallel_size=1,
        async_scheduling=False,
        policy_version=0,
    )


async def _serve(given: argparse.Namespace, settings: PluginSettings) -> None:
    limits = Limits(given.max_num_seqs, given.max_model_len, num_blocks=given.num_blocks)
    book = CallBook(settings.engine_id, settings.ticket_keys)
    engine = SimulatedEngine(book, limits, CostModel(speed=given.speed))
    if settings.channel_dir is not None:
        path = settings.channel_dir / "rank0.sock"
        engine.channel = ChannelServer(path, _hello(limits), lambda: list(book.unacked.values()))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # A client that leaves cancels its handler, which aborts its requests.
    runner = web.AppRunner(Front(engine, given.model).app(), handler_cancellation=True, access_log=None)
    await runner.setup()
    host, _, port = given.listen.rpartition(":")
    await web.TCPSite(runner, host, int(port)).start()
    steps = asyncio.create_task(engine.run())
    waits = asyncio.create_task(stop.wait())
    await asyncio.wait({steps, waits}, return_when=asyncio.FIRST_COMPLETED)
    await runner.cleanup()
    if engine.channel is not None:
        engine.channel.close()
    if steps.done():
        steps.result()
    steps.cancel()
    waits.cancel()


def main(argv: list[str] | None = None) -> int:
    """Exit status."""
    given = _arguments(sys.argv[1:] if argv is None else argv)
    env = {
        "AGENTSERVING_ENGINE_ID": given.engine_id,
        "AGENTSERVING_CHANNEL_DIR": given.channel_dir,
        "AGENTSERVING_TICKET_KEY_FILE": given.ticket_key_file,
    }
    try:
        asyncio.run(_serve(given, PluginSettings.from_env(env)))
    except (PluginConfigError, OSError) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
