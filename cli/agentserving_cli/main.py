"""The `agentserving` command."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import agentserving
import click
from agentserving.contract.policy import DEFAULT, PRESETS
from agentserving.contract.service_class import ServiceClass
from rich.console import Console

from agentserving_cli.audit_command import audit_command
from agentserving_cli.backup_command import backup
from agentserving_cli.connection import client_of, default_state_dir, fail
from agentserving_cli.cost_command import cost_command
from agentserving_cli.key_commands import key_commands
from agentserving_cli.local.layout import SCRIPTED, TINY, ClusterSpec
from agentserving_cli.local.process import StartFailedError
from agentserving_cli.local.state_dir import StateDirError
from agentserving_cli.local.vllm_env import EnvironmentFailedError
from agentserving_cli.option_types import BudgetText
from agentserving_cli.program_commands import program_commands
from agentserving_cli.program_header_options import program_header_options
from agentserving_cli.run_command import run
from agentserving_cli.service_option import ServiceClassType
from agentserving_cli.tenant_commands import tenant_commands
from agentserving_cli.token_options import token_options
from agentserving_cli.trace_command import trace_command
from agentserving_cli.ui_command import ui_command
from agentserving_cli.up import GaveUpError, run_up

console = Console()

state_dir_option = click.option(
    "--state-dir", type=click.Path(path_type=Path), default=default_state_dir, help="Where the local cluster lives."
)
control_plane_option = click.option(
    "--control-plane", default="", help="host:port of another cluster, or several with commas."
)
MODEL_HELP = "A directory or a name that vLLM's --model takes, or one that is made here: scripted (the default) calls "
MODEL_HELP += "tools and gives fixed answers in a context of 128k, tiny has random weights, and so have windowed, with "
MODEL_HELP += "sliding windows in half of its layers, and state-space, with Mamba 2 in half of them."
ENGINE_ARG_HELP = "A flag for every engine, such as --engine-arg=--max-num-seqs=32; it wins. May be repeated."
TOOL_PARSER_HELP = "vLLM's parser of tool calls, such as llama3_json; without one, requests with tools are refused. "
TOOL_PARSER_HELP += "Models that are made here have one."


def _local(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that name a cluster; the command's `connect` leads to it."""

    @functools.wraps(command)
    def found(*arguments: Any, state_dir: Path, control_plane: str, **chosen: Any) -> Any:
        return command(functools.partial(client_of, state_dir, control_plane), *arguments, **chosen)

    return state_dir_option(control_plane_option(found))


def _local_logs(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the option that names the cluster of this machine; its logs become the command's first argument."""

    @functools.wraps(command)
    def found(*arguments: Any, state_dir: Path, **chosen: Any) -> Any:
        return command(functools.partial(_lines_of_logs, state_dir), *arguments, **chosen)

    return state_dir_option(found)


def _lines_of_logs(state_dir: Path, since: timedelta) -> Iterator[str]:
    """All lines of the local cluster's logs, however old."""
    logs = sorted((state_dir / "logs").glob("*.log*"))
    if not logs:
        fail(f"no logs in {state_dir}: start a cluster with `agentserving up`, or name a log with --file")
    for path in logs:
        with path.open(errors="replace") as log:
            yield from log


class _Commands(click.Group):
    """The commands below, and those of other packages (entry points `agentserving.commands`)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *entry_points(group="agentserving.commands").names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        for entry in entry_points(group="agentserving.commands", name=cmd_name) if found is None else ():
            found = entry.load()
        return found


@click.group(cls=_Commands)
@click.version_option(agentserving.__version__)
def main() -> None:
    """Serve agentic programs, not single requests.

    Start a cluster with `agentserving up`, point any OpenAI or Anthropic client at the address it prints, and watch
    its programs with `agentserving top`. Commands find the cluster of this machine; --control-plane, or
    AGENTSERVING_CONTROL_PLANE, names another one.
    """


@main.command()
@click.option("--engine", type=click.Choice(["vllm", "simulator"]), default="vllm", show_default=True)
@click.option("--engines", type=click.IntRange(1, 16), default=2, show_default=True, help="How many.")
@click.option("--model", default="", help=MODEL_HELP)
@click.option("--engine-arg", "engine_args", multiple=True, help=ENGINE_ARG_HELP)
@click.option("--tool-parser", default="", help=TOOL_PARSER_HELP)
@click.option("--store", type=click.Choice(["etcd", "memory"]), default="etcd", show_default=True)
@click.option(
    "--control-planes",
    type=click.IntRange(1, 5),
    default=1,
    show_default=True,
    help="One leads, the others are on standby; several need --store etcd.",
)
@click.option("--policy", default=DEFAULT.name, show_default=True, help=f"One of {', '.join(PRESETS)}.")
@click.option(
    "--budget",
    type=BudgetText(),
    metavar="BUDGET",
    help="Of each program that has none of its own: tokens=200k,engine-seconds=300,calls=50.",
)
@click.option(
    "--service-class",
    type=ServiceClassType(),
    default=ServiceClass.STANDARD.label,
    show_default=True,
    help="Of programs that get none from a client or a key.",
)
@click.option(
    "--no-auth",
    "auth",
    flag_value=False,
    default=True,
    type=bool,
    help="No keys: anyone who reaches a port of this cluster may do everything.",
)
@click.option("--gateway-port", type=click.IntRange(0, 65535), default=0, help="0, the default: any free one.")
@click.option(
    "--tls-cert",
    "front_cert",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    help="Clients use https: PEM file of the certificate chain; a renewed one is used without a restart.",
)
@click.option(
    "--tls-key",
    "front_key",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    help="PEM file of its private key.",
)
@program_header_options
@token_options
@state_dir_option
def up(gateway_port: int, state_dir: Path, **chosen: Any) -> None:
    """Start a cluster on this machine and stay until Ctrl-C.

    Engines are vLLM: a CPU build with a scripted model that calls tools, installed at the first start; or the one of a
    Python that AGENTSERVING_VLLM_PYTHON names (vLLM 0.28 to 0.33, CUDA for instance) with your --model. GPUs are
    divided among the engines. --engine simulator needs no vLLM: it replaces the model by a cost model.
    """
    if chosen["control_planes"] > 1 and chosen["store"] != "etcd":
        raise click.UsageError("--control-planes: several need --store etcd, which they share")
    if (chosen["front_cert"] is None) != (chosen["front_key"] is None):
        raise click.UsageError("--tls-cert and --tls-key: give both or neither")
    chosen["model"] = chosen["model"] or (SCRIPTED if chosen["engine"] == "vllm" else TINY)
    with _failures():
        sys.exit(asyncio.run(run_up(ClusterSpec(state_dir, gateway_port=gateway_port, **chosen), console)))


@contextmanager
def _failures() -> Iterator[None]:
    """Turns expected failures into one clear message and exit status 1."""
    try:
        yield
    except (StartFailedError, StateDirError, EnvironmentFailedError, GaveUpError) as error:
        fail(str(error))


_own = (
    *program_commands(_local),
    key_commands(_local),
    tenant_commands(_local),
    audit_command(_local_logs),
    run,
    backup,
    trace_command(_local),
    cost_command(_local),
    ui_command(_local),
)
for _command in _own:
    main.add_command(_command)


@main.command()
@click.option("--engine", type=click.Choice(["vllm", "simulator"]), default="vllm", show_default=True)
@click.option("--programs", type=click.IntRange(5, 1000), default=60, show_default=True, help="Counted in a round.")
@click.option("--open", "open_programs", type=click.IntRange(1, 1000), default=24, show_default=True, help="At a time.")
@click.option("--rounds", type=click.IntRange(1, 20), default=2, show_default=True, help="Each with other programs.")
@click.option("--scale", type=click.FloatRange(0.01, 10), default=1.0, show_default=True, help="Of the token counts.")
@click.option("--slots", type=click.IntRange(1, 256), default=4, show_default=True, help="Calls that an engine runs.")
@click.option(
    "--kv-tokens", type=click.IntRange(8224), default=8320, show_default=True, help="KV cache of an engine, in tokens."
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-results"), help="Where results go.")
def demo(**chosen: Any) -> None:
    """Run the same agent programs under FCFS and under the default policy, and show the difference.

    As many programs are open as make the calls wait for most of the time, and their contexts exceed the KV cache
    several times: that is where the order of calls matters. With --open 4 no call waits, and the two are equal.
    """
    from agentserving_cli.demo import DemoPlan, run_demo

    try:
        with _failures():
            asyncio.run(run_demo(DemoPlan(**chosen), console))
    except KeyboardInterrupt:
        fail("interrupted")


if __name__ == "__main__":
    main()
