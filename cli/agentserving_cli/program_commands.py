"""Commands on programs, engines and the policy of a running cluster, wherever it is.

`agentserving` and `kubectl agentserving` have the same ones; how a command finds its control plane is the one thing in
which they differ: `where` adds the options for that and gives the command a `connect`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
from agentserving.v1 import admin_service_pb2, program_service_pb2, types_pb2
from google.protobuf import json_format
from rich.console import Console, Group, RenderableType
from rich.live import Live

from agentserving_cli import screens
from agentserving_cli.connection import DEADLINE_S, Services, fail, wait_for_policy
from agentserving_cli.output import WIDE, is_data, output_option, print_message

Connect = Callable[[], AbstractContextManager[Services]]
# Decorates f(connect, ...): adds options that say where the cluster is.
Where = Callable[[Callable[..., Any]], Callable[..., Any]]

console = Console()


def program_commands(where: Where) -> list[click.Command]:
    """All of them."""
    return [
        _ps(where),
        _top(where),
        _get(where, "get"),
        _get(where, "describe"),
        *_changes(where),
        _policy(where),
    ]


def _show(what: RenderableType, output: str) -> None:
    if output == "wide":
        Console(width=WIDE).print(what)
    else:
        console.print(what)


def _width(output: str) -> int:
    return WIDE if output == "wide" else console.width


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


def _ps(where: Where) -> click.Command:
    @click.command()
    @click.option("--all", "closed", is_flag=True, help="Closed programs, too.")
    @output_option
    @where
    def ps(connect: Connect, closed: bool, output: str) -> None:
        """List programs."""
        with connect() as stubs:
            programs = _all_programs(stubs, closed=closed)
        if is_data(output):
            print_message(program_service_pb2.ListProgramsResponse(programs=programs), output)
        else:
            _show(screens.programs_table(programs, _width(output)), output)

    return ps


def _top(where: Where) -> click.Command:
    @click.command()
    @click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, help="Seconds.")
    @click.option("--once", is_flag=True, help="One screen, then end; the default without a terminal.")
    @output_option
    @where
    def top(connect: Connect, interval: float, once: bool, output: str) -> None:
        """Watch programs and engines: who runs, at which level, with what received."""
        with connect() as stubs:
            if is_data(output):
                print_message(
                    stubs.admin.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=DEADLINE_S), output
                )
            elif once or output == "wide" or not sys.stdout.isatty():
                _show(_screen(stubs, _width(output), 0), output)
            else:
                _watch(stubs, interval)

    return top


def _screen(stubs: Services, width: int, height: int) -> Group:
    overview = stubs.admin.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=DEADLINE_S)
    return screens.top_screen(overview, _all_programs(stubs, closed=False), width, height)


def _watch(stubs: Services, interval_s: float) -> None:
    try:
        with Live(
            _screen(stubs, console.width, console.height), console=console, screen=True, auto_refresh=False
        ) as live:
            while True:
                time.sleep(interval_s)
                live.update(_screen(stubs, console.width, console.height), refresh=True)
    except KeyboardInterrupt:
        return


def _get(where: Where, name: str) -> click.Command:
    @click.command(name, help="Show one program: its account, its calls, its threads.")
    @click.argument("program_id")
    @output_option
    @where
    def get(connect: Connect, program_id: str, output: str) -> None:
        with connect() as stubs:
            request = program_service_pb2.GetProgramRequest(program_id=program_id)
            program = stubs.programs.GetProgram(request, timeout=DEADLINE_S).program
        if is_data(output):
            print_message(program, output)
        else:
            _show(screens.program_screen(program), output)

    return get


def _change(where: Where, name: str, text: str, method: str, request: Any, done: str) -> click.Command:
    @click.command(name, help=text)
    @click.argument("program_id")
    @output_option
    @where
    def command(connect: Connect, program_id: str, output: str) -> None:
        with connect() as stubs:
            call = getattr(stubs.programs, method)
            program = call(request(program_id=program_id), timeout=DEADLINE_S).program
        if is_data(output):
            print_message(program, output)
        else:
            click.echo(f"program {program.program_id} is {done}")

    return command


def _changes(where: Where) -> list[click.Command]:
    messages = program_service_pb2
    return [
        _change(
            where, "cancel", "Abort a program's calls, and its sub-agents'.", "CancelProgram",
            messages.CancelProgramRequest, "cancelled",
        ),
        _change(where, "pause", "Hold a program's calls.", "PauseProgram", messages.PauseProgramRequest, "held"),
        _change(
            where, "resume", "Let a held program go on.", "ResumeProgram", messages.ResumeProgramRequest, "going on"
        ),
    ]  # fmt: skip


def _policy(where: Where) -> click.Group:
    @click.group()
    def policy() -> None:
        """The scheduling policy in force."""

    @policy.command("get")
    @output_option
    @where
    def policy_get(connect: Connect, output: str) -> None:
        """Show it, and which engines follow it."""
        with connect() as stubs:
            told = stubs.admin.GetPolicy(admin_service_pb2.GetPolicyRequest(), timeout=DEADLINE_S)
        if is_data(output):
            print_message(told, output)
        else:
            _show(screens.policy_screen(told), output)

    @policy.command("set")
    @click.argument("name_or_file")
    @where
    def policy_set(connect: Connect, name_or_file: str) -> None:
        """Put a policy in force: fcfs, program-fcfs, mlfq, plas, atlas, program-plas, program-atlas, gittins, or a JSON
        file."""
        wanted = _wanted(name_or_file)
        with connect() as stubs:
            request = admin_service_pb2.ApplyPolicyRequest(policy=wanted)
            applied = stubs.admin.ApplyPolicy(request, timeout=DEADLINE_S).policy
            version = wait_for_policy(stubs, applied.version)
            click.echo(f"policy {applied.policy.name} is version {version}, acknowledged by every engine")

    return policy


def _wanted(name_or_file: str) -> types_pb2.Policy:
    """The policy that a file tells, or one that has only a name."""
    if Path(name_or_file).is_file():
        try:
            document = json.loads(Path(name_or_file).read_text())
            if not isinstance(document, dict):
                fail(f"{name_or_file}: a policy is a JSON object, this is {type(document).__name__}")
            return json_format.ParseDict(document, types_pb2.Policy())
        except (json_format.ParseError, OSError, ValueError) as error:
            fail(f"{name_or_file}: {' '.join(str(error).split())}")
    if name_or_file.endswith(".json"):
        fail(f"{name_or_file}: there is no such file")
    return types_pb2.Policy(name=name_or_file)
