"""Flags that say how a simulated engine answers: turns with tool calls, scripts, lengths, injected faults."""

from __future__ import annotations

import argparse
from pathlib import Path

from agentserving_simulator.answers.behaviour import Behaviour
from agentserving_simulator.answers.script import InvalidScriptError, Script, read_scripts
from agentserving_simulator.faults import Fault, InvalidFaultError, read_faults
from agentserving_simulator.http_front import Conduct


def add_conduct(parser: argparse.ArgumentParser) -> None:
    usual = Behaviour()
    group = parser.add_argument_group("answers")
    group.add_argument(
        "--turns", type=_count, default=usual.turns, metavar="N",
        help="how often an agent that offers tools gets a tool call before it gets its answer (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--parallel-calls", type=_positive, default=usual.parallel_calls, metavar="N",
        help="tool calls in a turn, where the request allows several (default %(default)s)",
    )  # fmt: skip
    group.add_argument("--script", type=Path, metavar="FILE", help="JSON: what is answered, turn by turn")
    group.add_argument(
        "--answer-tokens", type=_positive, default=usual.answer_tokens, metavar="N",
        help="length of answers to requests that neither set a lower limit nor ignore_eos (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--reasoning-tokens", type=_count, default=usual.reasoning_tokens, metavar="N",
        help="length of the reasoning, for requests that ask for it (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--fault", type=_faults, action="extend", default=[], metavar="FAULTS",
        help="injected faults: latency=SECONDS, STATUS[=RETRY_AFTER_S], cut[=TOKENS], each with @SHARE of the requests",
    )  # fmt: skip
    group.add_argument("--fault-seed", type=int, default=0, metavar="N", help="chooses the requests that are hit")


def conduct_of(arguments: argparse.Namespace) -> Conduct:
    """Reads the script. Raises InvalidScriptError or OSError."""
    scripts: tuple[Script, ...] = ()
    if arguments.script is not None:
        try:
            scripts = read_scripts(arguments.script.read_bytes())
        except InvalidScriptError as error:
            raise InvalidScriptError(f"{arguments.script}: {error}") from error
    behaviour = Behaviour(
        turns=arguments.turns,
        parallel_calls=arguments.parallel_calls,
        answer_tokens=arguments.answer_tokens,
        reasoning_tokens=arguments.reasoning_tokens,
        scripts=scripts,
    )
    return Conduct(
        behaviour=behaviour,
        faults=tuple(arguments.fault),
        fault_seed=arguments.fault_seed,
        keep_alive_s=arguments.sse_keep_alive_s,
    )


def _faults(text: str) -> tuple[Fault, ...]:
    try:
        return read_faults(text)
    except InvalidFaultError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    return _at_least(text, 0)


def _positive(text: str) -> int:
    return _at_least(text, 1)


def _at_least(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
    return number
