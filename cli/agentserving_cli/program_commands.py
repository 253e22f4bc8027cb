"""Commands on programs, engines and the policy of a running cluster, wherever it is.

`agentserving` and `kubectl agentserving` share them; they differ only in how a command finds its control plane: `where`
adds the options for that and passes the command a `connect`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import click
from agentserving import Client
from agentserving.client import operations
from agentserving.client.operations import Operation
from agentserving.client.values import ProgramState
from agentserving.contract import budgets
from agentserving.contract.budgets import Budget
from rich.console import Console, Group, RenderableType

from agentserving_cli import screens
from agentserving_cli.connection import wait_for_policy
from agentserving_cli.option_types import BudgetText
from agentserving_cli.output import WIDE, as_data, is_data, output_option, print_data
from agentserving_cli.policy_files import policy_in, policy_of
from agentserving_cli.top_command import watch
from agentserving_cli.top_view import TopView
from agentserving_cli.traces.run_screen import run_screen

Connect = Callable[[], AbstractContextManager[Client]]
# Decorates f(connect, ...): adds options that say where the cluster is.
Where = Callable[[Callable[..., Any]], Callable[..., Any]]

EVERY_STATE = tuple(state for state in ProgramState if state)

console = Console()


def program_commands(where: Where) -> list[click.Command]:
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


def _ps(where: Where) -> click.Command:
    @click.command()
    @click.option("--all", "closed", is_flag=True, help="Closed programs, too.")
    @output_option
    @where
    def ps(connect: Connect, closed: bool, output: str) -> None:
        """List programs."""
        states = EVERY_STATE if closed else ()
        with connect() as client:
            if is_data(output):
                print_data({"programs": _programs_as_data(client, states)}, output)
            else:
                _show(screens.programs_table(client.list_programs(states=states), _width(output)), output)

    return ps


def _programs_as_data(client: Client, states: tuple[ProgramState, ...]) -> list[Any]:
    found: list[Any] = []
    token = ""
    while True:
        page = client.run(as_data(operations.list_page(states, page_size=1000, page_token=token)))
        found += page["programs"]
        token = page["next_page_token"]
        if not token:
            return found


def _top(where: Where) -> click.Command:
    @click.command()
    @click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, help="Seconds between two screens.")
    @click.option("--once", is_flag=True, help="One screen, then end; the default without a terminal.")
    @output_option
    @where
    def top(connect: Connect, interval: float, once: bool, output: str) -> None:
        """Watch programs and engines: which run, at which level, and how much service they have attained.

        Sub-agents stand below their parents. Keys: q quits, s changes the order, / filters by id, name, state, class of
        service or engine, arrows scroll.
        """
        with connect() as client:
            if is_data(output):
                print_data(client.run(as_data(operations.get_overview())), output)
            elif once or output == "wide" or not sys.stdout.isatty():
                _show(_screen(client, _width(output), 0), output)
            else:
                watch(console, lambda view: _screen(client, console.width, console.height, view), interval)

    return top


def _screen(client: Client, width: int, height: int, view: TopView | None = None) -> Group:
    overview = client.get_overview()
    return screens.top_screen(overview, list(client.list_programs()), width, height, view)


def _get(where: Where, name: str) -> click.Command:
    @click.command(name, help="Show one program: where its time went, its calls, threads and sub-agents.")
    @click.argument("program_id")
    @output_option
    @where
    def get(connect: Connect, program_id: str, output: str) -> None:
        with connect() as client:
            if is_data(output):
                print_data(client.run(as_data(operations.get_program(program_id), "program")), output)
            else:
                _show(run_screen(client.get_trace(program_id), _width(output)), output)

    return get


def _action(
    where: Where, name: str, text: str, operation: Callable[[str], Operation[Any]], on: str, done: str
) -> click.Command:
    """A command that changes one object. `on` is "program" or "engine"; `done` is formatted with its fields."""

    @click.command(name, help=text)
    @click.argument(f"{on}_id")
    @output_option
    @where
    def command(connect: Connect, output: str, **argument: str) -> None:
        with connect() as client:
            document = client.run(as_data(operation(argument[f"{on}_id"]), on))
        if is_data(output):
            print_data(document, output)
        else:
            click.echo(done.format_map(document))

    return command


def _resume(where: Where) -> click.Command:
    @click.command()
    @click.argument("program_id")
    @click.option(
        "--add",
        type=BudgetText(),
        metavar="BUDGET",
        help="Add to its budget: tokens=100k, engine-seconds=60, calls=10.",
    )
    @output_option
    @where
    def resume(connect: Connect, program_id: str, add: Budget | None, output: str) -> None:
        """Resume a paused program's tree; when its budget is spent, with --add."""
        operation = operations.resume_program(program_id, add=add)
        with connect() as client:
            if is_data(output):
                print_data(client.run(as_data(operation, "program")), output)
                return
            program = client.run(operation)
        left = f", with {budgets.remaining_in_words(program.budget)}" if program.budget is not None else ""
        click.echo(f"program {program.program_id} goes on{left}")

    return resume


def _changes(where: Where) -> list[click.Command]:
    return [
        _action(where, "cancel", "Abort the calls of a program and its sub-agents. Its next calls are refused until it "
                "is opened again.", operations.cancel_program, "program", "program {program_id} is cancelled"),
        _action(where, "pause", "Pause a program's tree: its calls queue and do not run.",
                operations.pause_program, "program", "program {program_id} is paused"),
        _resume(where),
        _action(where, "drain", "Take an engine out for new calls; its calls finish. It lasts until undrain.",
                operations.drain_engine, "engine",
                "engine {engine_id} is draining: it gets no new programs; {calls_in_flight} calls are in flight"),
        _action(where, "undrain", "End a drain: the engine gets new calls again.", operations.undrain_engine, "engine",
                "engine {engine_id} gets new calls again; {calls_in_flight} calls are in flight"),
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
        operation = operations.get_policy()
        with connect() as client:
            if is_data(output):
                print_data(client.run(as_data(operation)), output)
            else:
                _show(screens.policy_screen(client.run(operation)), output)

    @policy.command("set")
    @click.argument("name_or_file", required=False, default="")
    @click.option("-f", "--file", "file", default="", help="A JSON file; - reads standard input.")
    @where
    def policy_set(connect: Connect, name_or_file: str, file: str) -> None:
        """Put a policy in force: auto, fcfs, program-fcfs, mlfq, plas, atlas, program-plas, program-atlas, gittins, or
        a JSON file, such as `policy get -o json` prints (with its balancer)."""
        if bool(name_or_file) == bool(file):
            raise click.UsageError("name a policy or a file, or give a file with -f")
        wanted, balancer = policy_of(name_or_file) if name_or_file else policy_in(file)
        with connect() as client:
            applied = client.set_policy(wanted, balancer=balancer)
            version = wait_for_policy(client, applied.version)
            click.echo(f"policy {applied.policy.name} is version {version}, acknowledged by every engine")

    return policy
