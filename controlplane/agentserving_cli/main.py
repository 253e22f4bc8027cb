"""The `agentserving` command."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
from agentserving.policy import PRESETS
from agentserving.v1 import admin_service_pb2, program_service_pb2, types_pb2
from google.protobuf import json_format
from rich.console import Console, Group
from rich.live import Live

from agentserving_cli import screens
from agentserving_cli.connection import DEADLINE_S, Services, default_state_dir, fail, services, wait_for_policy
from agentserving_cli.local.layout import TINY, ClusterSpec
from agentserving_cli.local.process import StartFailedError
from agentserving_cli.local.state_dir import StateDirError
from agentserving_cli.local.vllm_env import EnvironmentFailedError
from agentserving_cli.up import GaveUpError, run_up

console = Console()

state_dir_option = click.option(
    "--state-dir", type=click.Path(path_type=Path), default=default_state_dir, help="Where the local cluster lives."
)
control_plane_option = click.option("--control-plane", default="", help="host:port of another cluster.")
output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the answer.",
)
MODEL_HELP = "A directory or a name that vLLM's --model takes. The default is made here and has random weights."
ENGINE_ARG_HELP = "A flag for every engine, as --engine-arg=--max-num-seqs=32. May be given again."


class _Commands(click.Group):
    """The commands here, and those that packages beside this one bring (entry points `agentserving.commands`)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *entry_points(group="agentserving.commands").names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        for entry in entry_points(group="agentserving.commands", name=cmd_name) if found is None else ():
            found = entry.load()
        return found


@click.group(cls=_Commands)
@click.version_option("0.1.0")
def main() -> None:
    """Serve agentic programs, not single requests.

    Start a cluster with `agentserving up`, point any OpenAI or Anthropic client at the address it prints, and watch
    its programs with `agentserving top`. Commands find the cluster of this machine by themselves; --control-plane, or
    AGENTSERVING_CONTROL_PLANE, names another one.
    """


@main.command()
@click.option("--engine", type=click.Choice(["vllm", "simulator"]), default="vllm", show_default=True)
@click.option("--engines", type=click.IntRange(1, 16), default=2, show_default=True, help="How many.")
@click.option("--model", default=TINY, show_default=True, help=MODEL_HELP)
@click.option("--engine-arg", "engine_args", multiple=True, help=ENGINE_ARG_HELP)
@click.option("--store", type=click.Choice(["etcd", "memory"]), default="etcd", show_default=True)
@click.option("--policy", default="atlas", show_default=True, help=f"One of {', '.join(PRESETS)}.")
@click.option("--gateway-port", type=click.IntRange(0, 65535), default=0, help="0, the default: any free one.")
@state_dir_option
def up(gateway_port: int, state_dir: Path, **chosen: Any) -> None:
    """Start a cluster on this machine and stay until Ctrl-C.

    Engines are vLLM: a CPU build with a tiny random model, made at the first start; or, with AGENTSERVING_VLLM_PYTHON
    naming a Python that has vLLM 0.28 to 0.33 (CUDA, say), that one and the --model you name. GPUs are shared out
    among the engines. --engine simulator needs no vLLM: a cost model in the place of a model.
    """
    with _failures():
        sys.exit(asyncio.run(run_up(ClusterSpec(state_dir, gateway_port=gateway_port, **chosen), console)))


@contextmanager
def _failures() -> Iterator[None]:
    """What may go wrong when a cluster starts, as one clear message and exit status 1."""
    try:
        yield
    except (StartFailedError, StateDirError, EnvironmentFailedError, GaveUpError) as error:
        fail(str(error))


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
    """JSON as protobuf writes it: 64-bit numbers are strings; zeros are there, too."""
    told = json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    click.echo(told)


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
            console.print(screens.programs_table(programs, console.width))


@main.command()
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, help="Seconds.")
@click.option("--once", is_flag=True, help="One screen, then end; the default without a terminal.")
@output_option
@state_dir_option
@control_plane_option
def top(interval: float, once: bool, output: str, state_dir: Path, control_plane: str) -> None:
    """Watch programs and engines: who runs, at which level, with what received."""
    with services(state_dir, control_plane) as stubs:
        if output == "json":
            _print_message(stubs.admin.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=DEADLINE_S))
            return

        def screen() -> Group:
            overview = stubs.admin.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=DEADLINE_S)
            programs = _all_programs(stubs, closed=False)
            height = console.height if sys.stdout.isatty() and not once else 0
            return screens.top_screen(overview, programs, console.width, height)

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


@main.command()
@click.argument("program_id")
@output_option
@state_dir_option
@control_plane_option
def get(program_id: str, output: str, state_dir: Path, control_plane: str) -> None:
    """Show one program: its account, its calls, its threads."""
    with services(state_dir, control_plane) as stubs:
        request = program_service_pb2.GetProgramRequest(program_id=program_id)
        program = stubs.programs.GetProgram(request, timeout=DEADLINE_S).program
        if output == "json":
            _print_message(program)
        else:
            console.print(screens.program_screen(program))


def _program_command(name: str, text: str, method: str, request: Any, done: str) -> None:
    @main.command(name, help=text)
    @click.argument("program_id")
    @output_option
    @state_dir_option
    @control_plane_option
    def command(program_id: str, output: str, state_dir: Path, control_plane: str) -> None:
        with services(state_dir, control_plane) as stubs:
            call = getattr(stubs.programs, method)
            program = call(request(program_id=program_id), timeout=DEADLINE_S).program
            if output == "json":
                _print_message(program)
            else:
                click.echo(f"program {program.program_id} is {done}")


_program_command(
    "cancel", "Abort a program's calls, and its sub-agents'.", "CancelProgram",
    program_service_pb2.CancelProgramRequest, "cancelled",
)  # fmt: skip
_program_command("pause", "Hold a program's calls.", "PauseProgram", program_service_pb2.PauseProgramRequest, "held")
_program_command(
    "resume", "Let a held program go on.", "ResumeProgram", program_service_pb2.ResumeProgramRequest, "going on"
)


@main.group()
def policy() -> None:
    """The scheduling policy in force."""


@policy.command("get")
@output_option
@state_dir_option
@control_plane_option
def policy_get(output: str, state_dir: Path, control_plane: str) -> None:
    """Show it, and which engines follow it."""
    with services(state_dir, control_plane) as stubs:
        told = stubs.admin.GetPolicy(admin_service_pb2.GetPolicyRequest(), timeout=DEADLINE_S)
        if output == "json":
            _print_message(told)
        else:
            console.print(screens.policy_screen(told))


@policy.command("set")
@click.argument("name_or_file")
@state_dir_option
@control_plane_option
def policy_set(name_or_file: str, state_dir: Path, control_plane: str) -> None:
    """Put a policy in force: fcfs, program-fcfs, mlfq, plas, atlas, program-plas, program-atlas, gittins, or a JSON
    file."""
    wanted = types_pb2.Policy(name=name_or_file)
    if Path(name_or_file).is_file():
        try:
            document = json.loads(Path(name_or_file).read_text())
            if not isinstance(document, dict):
                fail(f"{name_or_file}: a policy is a JSON object, this is {type(document).__name__}")
            wanted = json_format.ParseDict(document, types_pb2.Policy())
        except (json_format.ParseError, OSError, ValueError) as error:
            fail(f"{name_or_file}: {' '.join(str(error).split())}")
    elif name_or_file.endswith(".json"):
        fail(f"{name_or_file}: there is no such file")
    with services(state_dir, control_plane) as stubs:
        request = admin_service_pb2.ApplyPolicyRequest(policy=wanted)
        applied = stubs.admin.ApplyPolicy(request, timeout=DEADLINE_S).policy
        version = wait_for_policy(stubs, applied.version)
        click.echo(f"policy {applied.policy.name} is version {version}, acknowledged by every engine")


@main.command()
@click.option("--engine", type=click.Choice(["vllm", "simulator"]), default="vllm", show_default=True)
@click.option("--programs", type=click.IntRange(4, 1000), default=90, show_default=True, help="Of the four kinds.")
@click.option("--rate", type=click.FloatRange(0.01, 1000), default=2.5, show_default=True, help="Programs a second.")
@click.option(
    "--scale",
    type=click.FloatRange(0, 10),
    default=0.0,
    help="Of the token counts; 0, the default: what fills the engines.",
)
@click.option("--slots", type=click.IntRange(1, 256), default=4, show_default=True, help="Calls that an engine runs.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-results"), help="Where results go.")
def demo(**chosen: Any) -> None:
    """Run the same agent programs under FCFS and under ATLAS, and show the difference.

    By default the programs are made as long as overloads the engines a little: that is where the order of calls
    matters. With a small --scale nobody waits, and the two are equal.
    """
    from agentserving_cli.demo import DemoPlan, run_demo

    try:
        with _failures():
            asyncio.run(run_demo(DemoPlan(**chosen), console))
    except KeyboardInterrupt:
        fail("interrupted")


if __name__ == "__main__":
    main()
