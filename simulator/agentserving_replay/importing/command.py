"""``agentserving import``: traces of others as a trace for `replay` and `tune`, written to standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import click

from agentserving_replay.importing import mooncake, otel, weka
from agentserving_replay.importing.errors import ImportFailedError
from agentserving_replay.traces.file import MAX_TOKENS, CallLine, ProgramLine, encoded

_FILE = click.argument("file", type=click.File("rb"))


@click.group("import")
def import_trace() -> None:
    """Convert traces of others, for `replay` and `tune`: agentserving import weka DIR > trace.jsonl"""


@import_trace.command("weka")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--start-every", type=click.FloatRange(0, 1e6), default=60.0, show_default=True,
    help="Seconds between two sessions, which have no common clock. A closed loop ignores it.",
)  # fmt: skip
@click.option(
    "--tokens-per-s", type=click.FloatRange(min=0.1, max=1e6),
    help="Decoding speed to assume for requests without api_time. Default: refuse them.",
)  # fmt: skip
@click.option(
    "--max-context", type=click.IntRange(1, MAX_TOKENS), default=MAX_TOKENS,
    help="Leave out sessions with a larger context than this, such as the model's. Default: none.",
)  # fmt: skip
def import_weka(folder: Path, start_every: float, tokens_per_s: float | None, max_context: int) -> None:
    """Coding-agent sessions of WEKA (callanjfox/kv-cache-tester, cc-traces-weka-*): the .json or .jsonl files of a
    FOLDER."""
    _write(str(folder), weka.read(folder, start_every, tokens_per_s, max_context))


@import_trace.command("mooncake")
@_FILE
@click.option(
    "--tokens-per-s", type=click.FloatRange(min=0.1, max=1e6), default=50.0, show_default=True,
    help="Decoding speed to assume: the trace does not say when calls ended.",
)  # fmt: skip
def import_mooncake(file: BinaryIO, tokens_per_s: float) -> None:
    """A Mooncake FILE (FAST25-release): one request a line. Requests that continue a prompt become one program."""
    _write(file.name, mooncake.read(file, tokens_per_s))


@import_trace.command("otel")
@_FILE
def import_otel(file: BinaryIO) -> None:
    """OpenTelemetry GenAI spans: a FILE of OTLP JSON lines."""
    _write(file.name, otel.read(file))


def _write(name: str, programs: Iterable[list[ProgramLine | CallLine]]) -> None:
    out = sys.stdout.buffer
    try:
        for lines in programs:
            out.write(encoded(lines))
    except ImportFailedError as error:
        raise click.ClickException(f"{name}: {error}") from error
