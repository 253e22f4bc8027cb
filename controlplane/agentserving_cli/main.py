"""The `agentserving` command."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click
from agentserving.v1 import admin_service_pb2, program_service_pb2, types_pb2
from google.protobuf import json_format
from rich.console import Console, Group
from rich.live import Live

from agentserving_cli import screens
from agentserving_cli.connection import DEADLINE_S, Services, default_state_dir, fail, services, wait_for_policy
from agentserving_cli.local.cluster import LocalCluster, StateDirError
from agentserving_cli.local.layout import ClusterSpec
from agentserving_cli.local.process import StartFailedError
from agentserving_cli.local.vllm_env import EnvironmentFailedError

console = Console()

state_dir_option = click.option(
    "--state-dir", type=click.Path(path_type=Path), default=default_state_dir, help="Where the local cluster lives."
)
control_plane_option = click.option("--control-plane", default="", help="host:port of another cluster.")
output_option = click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")


@click.group()
@click.version_option("0.1.0")
def main() -> None:
    """Serve agentic programs, not single requests."""


@main.command()
@click.option("--engine", type=click.Choice(["vllm", "simulator"]), default="vllm")
@click.option("--engines", type=click.IntRange(1, 16), default=2)
@click.option("--store", type=click.Choice(["etcd", "memory"]), default="etcd")
@click.option("--policy", default="atlas")
@click.option("--gateway-port", type=click.IntRange(0, 65535), default=0, help="0 = any free one.")
@state_dir_option
def up(engine: str, engines: int, store: str, policy: str, gateway_port: int, state_dir: Path) -> None:
    """Start a cluster on this machine and stay until Ctrl-C."""
    spec = ClusterSpec(state_dir, engine, engines, store, policy, gateway_port=gateway_port)
    try:
        asyncio.run(_up(spec))
    except (StartFailedError, StateDirError, EnvironmentFailedError) as error:
        fail(str(error))


async def _up(spec: ClusterSpec) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def end() -> None:
        if stop.is_set() or (not started and task is not None):
            task.cancel()  # type: ignore[union-attr]
        stop.set()

    started = False
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    began = time.monotonic()

    def tell(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.1f}s[/dim]  {text}")

    try:
        async with LocalCluster(spec, tell) as cluster:
            started = True
            console.print(f"\nReady. Point any OpenAI client at it:\n  export OPENAI_BASE_URL={cluster.gateway_url}")
            console.print(f"  export OPENAI_API_KEY=none\n  export AGENTSERVING_CONTROL_PLANE={cluster.control_plane}")
            console.print("Model: tiny. See who runs: agentserving top. Ctrl-C ends it.")
            await stop.wait()
            console.print("ending")
    except asyncio.CancelledError:
        console.print("ended before it was up")


def _all_programs(stubs: Services, *, closed: bool) -> list[types_pb2.Program]:
    found: list[types_pb2.Program] = []
    token = ""
    states = list(range(1, 5)) if closed else []
    while True:
        request = program_service_pb2.ListProgramsRequest(page_size=1000, page_token=token, states=states)  # type: ignore[arg-type]
        page = stubs.programs.ListPrograms(request, timeout=DEADLINE_S)
        found += page.programs
        token = page.next_page_token
        if not token:
            return found


def _print_message(message: Any) -> None:
    click.echo(json_format.MessageToJson(message, preserving_proto_field_name=True))


@main.command()
@click.option("--all", "closed", is_flag=True, help="Closed programs, too.")
@output_option
@state_dir_option
@control_plane_option
def ps(closed: bool, output: str, state_dir: Path, control_plane: str) -> None:
    """List programs."""
    with services(state_dir, control_plane) as stubs:
        programs = _all_programs(stubs, closed=closed)
        if output == "json":
            _print_message(program_service_pb2.ListProgramsResponse(programs=programs))
        else:
            console.print(screens.programs_table(programs))


@main.command()
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, help="Seconds.")
@click.option("--once", is_flag=True, help="One screen, then end; the default without a terminal.")
@state_dir_option
@control_plane_option
def top(interval: float, once: bool, state_dir: Path, control_plane: str) -> None:
    """Watch programs and engines."""
    with services(state_dir, control_plane) as stubs:

        def screen() -> Group:
            overview = stubs.admin.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=DEADLINE_S)
            programs = _all_programs(stubs, closed=False)
            shown = sorted(programs, key=lambda p: not p.calls)[: max(5, console.height - 12)]
            return Group(
                screens.headline(overview), "", screens.engines_table(list(overview.engines)), "",
                screens.programs_table(shown),
            )  # fmt: skip

        if once or not sys.stdout.isatty():
            console.print(screen())
            return
        try:
            with Live(screen(), console=console, screen=True, auto_refresh=False) as live:
                while True:
                    time.sleep(interval)
                    live.update(screen(), refresh=True)
        except KeyboardInterrupt:
            return


def _program_command(name: str, text: str, method: str, request: Any) -> None:
    @main.command(name, help=text)
    @click.argument("program_id")
    @state_dir_option
    @control_plane_option
    def command(program_id: str, state_dir: Path, control_plane: str) -> None:
        with services(state_dir, control_plane) as stubs:
            call = getattr(stubs.programs, method)
            _print_message(call(request(program_id=program_id), timeout=DEADLINE_S).program)


_program_command("get", "Show one program.", "GetProgram", program_service_pb2.GetProgramRequest)
_program_command("cancel", "Abort a program's calls.", "CancelProgram", program_service_pb2.CancelProgramRequest)
_program_command("pause", "Hold a program's calls.", "PauseProgram", program_service_pb2.PauseProgramRequest)
_program_command("resume", "Let a held program go on.", "ResumeProgram", program_service_pb2.ResumeProgramRequest)


@main.group()
def policy() -> None:
    """The scheduling policy in force."""


@policy.command("get")
@state_dir_option
@control_plane_option
def policy_get(state_dir: Path, control_plane: str) -> None:
    """Show it, and which engines follow it."""
    with services(state_dir, control_plane) as stubs:
        _print_message(stubs.admin.GetPolicy(admin_service_pb2.GetPolicyRequest(), timeout=DEADLINE_S))


@policy.command("set")
@click.argument("name_or_file")
@state_dir_option
@control_plane_option
def policy_set(name_or_file: str, state_dir: Path, control_plane: str) -> None:
    """Put a preset (fcfs, program-fcfs, mlfq, plas, atlas) or a policy in a JSON file in force."""
    wanted = types_pb2.Policy(name=name_or_file)
    if Path(name_or_file).is_file():
        try:
            wanted = json_format.Parse(Path(name_or_file).read_text(), types_pb2.Policy())
        except json_format.ParseError as error:
            fail(f"{name_or_file}: {error}")
    with services(state_dir, control_plane) as stubs:
        request = admin_service_pb2.ApplyPolicyRequest(policy=wanted)
        applied = stubs.admin.ApplyPolicy(request, timeout=DEADLINE_S).policy
        version = wait_for_policy(stubs, applied.version)
        console.print(f"policy {applied.policy.name} is version {version}, acknowledged by every engine")


@main.command()
@click.option("--engine", type=click.Choice(["vllm", "simulator"]), default="vllm")
@click.option("--programs", type=click.IntRange(4, 1000), default=48)
@click.option("--rate", type=click.FloatRange(0.01, 1000), default=2.0, help="Programs a second.")
@click.option("--scale", type=click.FloatRange(0.01, 10), default=0.5, help="Of the paper's token counts.")
@click.option("--seed", type=int, default=1)
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-results"), help="Where results go.")
def demo(engine: str, programs: int, rate: float, scale: float, seed: int, out: Path) -> None:
    """Run the same agent programs under FCFS and under ATLAS, and show the difference."""
    from agentserving_cli.demo import DemoPlan, run_demo

    try:
        asyncio.run(run_demo(DemoPlan(engine, programs, rate, scale, seed, out), console))
    except (StartFailedError, StateDirError, EnvironmentFailedError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted")


if __name__ == "__main__":
    main()
