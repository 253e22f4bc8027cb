"""`agentserving run -- COMMAND`: a command and all that it starts as one program, closed by its exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
from agentserving import AgentServingError, Client
from agentserving.client.values import Outcome, Program
from agentserving.contract.budgets import Budget
from agentserving.contract.service_class import ServiceClass
from agentserving.programs.headers import short_name
from agentserving.transport.connection import key_from_environment

from agentserving_cli.connection import address_of, connect, connected, default_state_dir, fail, reason_of
from agentserving_cli.local.credentials import Credentials
from agentserving_cli.local.state_dir import read_addresses
from agentserving_cli.option_types import BudgetText
from agentserving_cli.run_environment import PROGRAM_ID, Run, command_of, environment_of, name_of, new_program_id
from agentserving_cli.service_option import ServiceClassType

MODELS_BOUND_S = 10.0
# What a shell reports of a command that cannot be run, and, plus its number, of one that a signal has ended.
NOT_FOUND, BY_SIGNAL = 127, 128


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--name", default="", help="Of the program; by default the command's, or that of the script it runs.")
@click.option("--model", default="", help="By default the one that is served, when it is only one.")
@click.option("--gateway", default="", help="Its URL; by default AGENTSERVING_GATEWAY, or the local cluster's.")
@click.option("--control-plane", default="", help="host:port of another cluster, or several with commas.")
@click.option("--state-dir", type=click.Path(path_type=Path), default=default_state_dir, help="Of the local cluster.")
@click.option(
    "--budget",
    type=BudgetText(),
    metavar="BUDGET",
    help="What the program may use before it is paused: tokens=200k,engine-seconds=300,calls=50.",
)
@click.option(
    "--service-class",
    type=ServiceClassType(),
    default=ServiceClass.UNSPECIFIED,
    help="Of the program; by default the key's, or else the cluster's.",
)
@click.option("--quiet", "-q", is_flag=True, help="Without the line about the program at the end.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    name: str,
    model: str,
    gateway: str,
    control_plane: str,
    state_dir: Path,
    budget: Budget | None,
    service_class: ServiceClass,
    quiet: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND, an agent for instance, as one program.

    Its environment leads OpenAI's and Anthropic's clients to the cluster, and their base URL names the program, so
    every call of the command and of what it starts belongs to it: agentserving run -- claude -p "fix the tests". The
    program ends COMPLETED when the command exits with 0, else FAILED. Exits with the command's own status, or with 1
    if that is 0 and the program was cancelled.
    """
    if shutil.which(command[0]) is None:
        click.echo(f"Error: {command[0]}: no such command", err=True)
        sys.exit(NOT_FOUND)
    name = name or short_name(name_of(command))
    address = address_of(state_dir, control_plane)
    key = _key(state_dir, address)
    url = gateway or os.environ.get("AGENTSERVING_GATEWAY", "") or _local_gateway(state_dir, address)
    planned = Run(gateway=url, control_plane=address, program_id=new_program_id(name), key=key)
    model = model or _only_model(planned)
    planned = Run(gateway=url, control_plane=address, program_id=planned.program_id, key=key, model=model)
    with connected(address, api_key=key) as client:
        client.open_program(
            name,
            program_id=planned.program_id,
            parent_program_id=os.environ.get(PROGRAM_ID, ""),
            budget=budget,
            service_class=service_class,
        )
    status = _status_of(command_of(planned, command), environment_of(planned, os.environ))
    with connect(address, api_key=key) as client:
        outcome = _close(client, planned, Outcome.FAILED if status else Outcome.COMPLETED, quiet)
    # Many agents take the end of a cancelled call for an answer, and report success.
    sys.exit(status or int(outcome is Outcome.CANCELLED))


def _key(state_dir: Path, address: str) -> str:
    """The user's key of the local cluster at this address, else one of the environment; empty for none."""
    if given := os.environ.get("AGENTSERVING_API_KEY", ""):
        return given
    if address != read_addresses(state_dir).get("control_plane"):
        return key_from_environment()
    try:
        return Credentials(state_dir).read("client")
    except FileNotFoundError:
        return ""  # --no-auth
    except OSError as error:
        fail(f"the key of the local cluster cannot be read: {error}")


def _local_gateway(state_dir: Path, address: str) -> str:
    addresses = read_addresses(state_dir)
    if address != addresses.get("control_plane"):
        fail(f"no gateway of the cluster at {address} is known: give its URL with --gateway or AGENTSERVING_GATEWAY")
    return str(addresses["gateway"])


def _only_model(run: Run) -> str:
    """The served model; empty when there are several. Fails when the gateway does not answer."""
    request = urllib.request.Request(f"{run.origin}/v1/models")
    if run.key:
        request.add_header("authorization", f"Bearer {run.key}")
    # The user's proxy does not lead to the cluster's own gateway on this machine.
    proxies: dict[str, str] | None = {} if "://127.0.0.1" in run.origin or "://localhost" in run.origin else None
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
        with opener.open(request, timeout=MODELS_BOUND_S) as response:
            models = [str(model["id"]) for model in json.load(response)["data"]]
    except urllib.error.HTTPError as error:
        fail(f"the gateway at {run.origin} refuses: {error.code} {error.read(2000).decode(errors='replace').strip()}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"the gateway at {run.origin} does not answer: {error}. Give its URL with --gateway")
    return models[0] if len(models) == 1 else ""


def _status_of(command: Sequence[str], environment: dict[str, str]) -> int:
    try:
        child = subprocess.Popen(command, env=environment)
    except OSError as error:
        click.echo(f"Error: {command[0]}: {error.strerror}", err=True)
        return NOT_FOUND
    with _signals_for(child):
        status = child.wait()
    return status if status >= 0 else BY_SIGNAL - status


@contextmanager
def _signals_for(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Passes SIGTERM and SIGHUP on. The terminal sends Ctrl-C to the command, too, which decides what follows."""

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _close(client: Client, run: Run, outcome: Outcome, quiet: bool) -> Outcome:
    """The program's outcome. The command's own status counts, so an error here is a warning."""
    try:
        closed = client.close_program(run.program_id, outcome=outcome)
    except AgentServingError as error:
        click.echo(f"agentserving: {run.program_id} was not closed: {reason_of(error, run.control_plane)}", err=True)
        return outcome
    if closed.outcome is Outcome.CANCELLED:
        click.echo(f"agentserving: {run.program_id} was cancelled", err=True)
    if not quiet:
        click.echo(f"agentserving: {_summary(closed)}", err=True)
    return closed.outcome


def _summary(program: Program) -> str:
    name = program.program_id
    if program.calls_completed or program.calls:
        calls = f"{program.calls_completed} call{'' if program.calls_completed == 1 else 's'}"
        return (
            f"{name} made {calls}: {program.total_service_us / 1e6:.1f} s of service, {program.wait_us / 1e6:.1f} s of "
            f"waiting, {program.output_tokens} tokens. See: agentserving get {name}"
        )
    if program.attained_service_us:
        return f"programs inside {name} received {program.attained_service_us / 1e6:.1f} s of service"
    return f"{name} made no calls: does the command use another base URL than the environment's?"
