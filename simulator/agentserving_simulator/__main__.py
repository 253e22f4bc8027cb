"""``python -m agentserving_simulator``: a simulated engine that serves until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import ssl
import sys
import uuid
from pathlib import Path

import agentserving
from agentserving.contract.channel import EngineHello, socket_name
from agentserving.contract.replaced_files import settled
from agentserving_engine.calls import CallBook, Outbox, Unticketed
from agentserving_engine.channel_server import ChannelServer
from agentserving_engine.http.entrance import Entrance
from agentserving_engine.http.middleware import pod_secret_of
from agentserving_engine.settings import SSE_KEEP_ALIVE_S, PluginConfigError, PluginSettings, keep_alive_seconds
from agentserving_process import logs, supervision
from agentserving_process.addresses import of_all_families, split_address
from agentserving_process.supervision import CannotStartError, Supervisor
from aiohttp import web

from agentserving_simulator.answers.script import InvalidScriptError
from agentserving_simulator.conduct_options import add_conduct, conduct_of
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.engine import Limits, SimulatedEngine
from agentserving_simulator.http_front import Front

# Coding agents begin with 25,000 tokens of instructions and tools.
AGENTS_CONTEXT = 131_072
# A renewed certificate is used for connections from so long after its file's change on.
RENEW_S = 1.0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agentserving_simulator", description=__doc__)
    parser.add_argument("--listen", required=True, help="host:port of the OpenAI paths")
    parser.add_argument("--engine-id", required=True)
    parser.add_argument("--channel-dir", default="", help="directory shared with the sidecar")
    parser.add_argument("--ticket-key-file", default="", help="public key of the control plane's tickets")
    parser.add_argument("--gateway-key-file", default="", help="public key of the gateways' tickets")
    parser.add_argument(
        "--unticketed",
        choices=[each.value for each in Unticketed],
        default=Unticketed.LAST.value,
        help="calls without a valid ticket are refused, or run last (default %(default)s)",
    )
    parser.add_argument("--tenant-cache", choices=["separate", "shared"], default="separate")
    parser.add_argument("--tls-cert", default="", help="PEM file of the certificate of the OpenAI paths; none: http")
    parser.add_argument("--tls-key", default="", help="PEM file of its private key")
    parser.add_argument(
        "--tls-ca", default="", help="PEM file of the CA of clients' certificates; none: clients need no certificate"
    )
    parser.add_argument("--model", default="tiny", help="model name that the engine serves")
    parser.add_argument("--max-num-seqs", type=int, default=Limits().max_num_seqs)
    parser.add_argument("--num-blocks", type=int, default=Limits().num_blocks)
    parser.add_argument(
        "--max-model-len", type=int, metavar="TOKENS",
        help=f"longest prompt with its answer (default {AGENTS_CONTEXT}, or as many as the blocks hold)",
    )  # fmt: skip
    parser.add_argument("--speed", type=float, default=1.0, help="speed as a multiple of an A100's with an 8B model")
    parser.add_argument(
        "--sse-keep-alive-s", type=keep_alive_seconds, default=SSE_KEEP_ALIVE_S, metavar="SECONDS",
        help="longest silence of a stream; then a comment is sent (default %(default)s, 0 = never)",
    )  # fmt: skip
    add_conduct(parser)
    arguments = parser.parse_args(argv)
    if arguments.max_model_len is None:
        arguments.max_model_len = min(AGENTS_CONTEXT, max(1, arguments.num_blocks * Limits().block_size))
    for name in ("max_num_seqs", "num_blocks", "max_model_len", "speed"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be positive, not {getattr(arguments, name)}")
    if bool(arguments.tls_cert) != bool(arguments.tls_key):
        parser.error("--tls-cert and --tls-key: give both or neither")
    if arguments.tls_ca and not arguments.tls_cert:
        parser.error("--tls-ca: --tls-cert is needed with it")
    try:
        split_address(arguments.listen)
    except ValueError as error:
        parser.error(f"--listen: {error}")
    return arguments


def _hello(limits: Limits) -> EngineHello:
    return EngineHello(
        boot_id=uuid.uuid4().hex,
        pid=os.getpid(),
        engine_kind="SIMULATOR",
        engine_version=agentserving.__version__,
        plugin_version=agentserving.__version__,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        block_size=limits.block_size,
        num_blocks=limits.num_blocks,
        data_parallel_size=1,
        async_scheduling=False,
        policy_version=0,
    )


def _engine(arguments: argparse.Namespace) -> tuple[SimulatedEngine, Entrance]:
    """Raises PluginConfigError or OSError."""
    settings = PluginSettings.from_env(
        {
            "AGENTSERVING_ENGINE_ID": arguments.engine_id,
            "AGENTSERVING_CHANNEL_DIR": arguments.channel_dir,
            "AGENTSERVING_TICKET_KEY_FILE": arguments.ticket_key_file,
            "AGENTSERVING_GATEWAY_KEY_FILE": arguments.gateway_key_file,
            "AGENTSERVING_UNTICKETED": arguments.unticketed,
            "AGENTSERVING_TENANT_CACHE": arguments.tenant_cache,
        }
    )
    limits = Limits(
        max_num_seqs=arguments.max_num_seqs, max_model_len=arguments.max_model_len, num_blocks=arguments.num_blocks
    )
    outbox = Outbox() if settings.channel_dir is not None else Outbox(limit=0)
    hello = _hello(limits)
    check = settings.ticket_check(hello.boot_id)
    book = CallBook(check, outbox)
    engine = SimulatedEngine(book, limits, CostModel(speed=arguments.speed))
    if settings.channel_dir is not None:
        engine.session.channel = ChannelServer(settings.channel_dir / socket_name(0), hello, outbox)
    secret = pod_secret_of(settings)
    return engine, Entrance(lambda: check, separate_caches=settings.separate_caches, pod_secret=secret)


def _certificate(arguments: argparse.Namespace, supervisor: Supervisor) -> ssl.SSLContext | None:
    """None for http. OSError."""
    if not arguments.tls_cert:
        return None
    files = [Path(each) for each in (arguments.tls_cert, arguments.tls_key, arguments.tls_ca) if each]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED if arguments.tls_ca else ssl.CERT_NONE

    def load() -> None:
        context.load_cert_chain(arguments.tls_cert, arguments.tls_key)
        if arguments.tls_ca:
            # Adds to those that are trusted, as vLLM does.
            context.load_verify_locations(arguments.tls_ca)

    known = settled(lambda: tuple(each.read_bytes() for each in files))
    load()

    async def renew() -> None:
        nonlocal known
        while True:
            await asyncio.sleep(RENEW_S)
            # Between two replaced files there is nothing to load.
            with contextlib.suppress(OSError):
                found = settled(lambda: tuple(each.read_bytes() for each in files))
                if found != known:
                    load()
                    known = found

    supervisor.start("certificate", renew)
    return context


async def _serve(arguments: argparse.Namespace, supervisor: Supervisor) -> None:
    try:
        engine, entrance = _engine(arguments)
        conduct = conduct_of(arguments)
    except (PluginConfigError, InvalidScriptError, OSError) as error:
        raise CannotStartError(str(error)) from None
    # A client that disconnects cancels its handler, which cancels its requests.
    app = Front(engine, arguments.model, entrance, conduct, arguments.engine_id).app()
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    host, port = split_address(arguments.listen)
    try:
        try:
            await web.TCPSite(
                runner, of_all_families(host), port, ssl_context=_certificate(arguments, supervisor)
            ).start()
        except OSError as error:
            raise CannotStartError(f"cannot listen on {arguments.listen}: {error.strerror or error}") from None
        supervisor.start("steps", engine.run)
        await supervisor.stop_requested()
    finally:
        await runner.cleanup()
        if isinstance(engine.session.channel, ChannelServer):
            await asyncio.to_thread(engine.session.channel.close)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    logs.configure()
    return supervision.run(lambda supervisor: _serve(arguments, supervisor))


if __name__ == "__main__":
    sys.exit(main())
