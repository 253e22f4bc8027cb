"""``agentserving record``: records a trace of a running cluster until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from datetime import UTC, datetime
from pathlib import Path

import click
from agentserving import AgentServingError, AsyncClient
from agentserving.client.values import EngineState, PolicyVersion
from agentserving.contract.policy import to_dict
from agentserving_cli.connection import address_of, default_state_dir, fail, key_of
from agentserving_controlplane.engines.load_balancer import Balancer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from agentserving_replay.traces.file import RecordingLine
from agentserving_replay.traces.recording import Counts, Recorder
from agentserving_replay.traces.writer import TraceWriter, settle_systems

# Reading goes on for this long after the end, for endings that are in flight then.
GRACE_S = 0.5
# Interval at which the progress bar is updated.
UPDATE_S = 0.5
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}


class Duration(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Seconds, from 90, 90s, 10m or 2h."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds; fails for anything that is not a duration."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smh]?)", str(value).strip())
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a duration: write 90s, 10m or 2h", param, ctx)
        return float(match[1]) * _UNITS_S[match[2]]


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to create.")
@click.option("--for", "length_s", type=Duration(), default=None, help="Duration, such as 10m. Default: until Ctrl-C.")
@click.option("--closed-only", is_flag=True, help="Skip programs that are still open at the end.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    default=default_state_dir,
    help="State directory of the local cluster.",
)
@click.option("--control-plane", default="", help="host:port of another cluster's control plane.")
def record(out: Path, length_s: float | None, closed_only: bool, state_dir: Path, control_plane: str) -> None:
    """Record the programs of a running cluster: calls, tokens, times and the order of calls, never text.

    `agentserving replay` and `agentserving tune` read the file. A program is written when it has ended. Programs that
    are open when the recording ends are written as if they had ended then (--closed-only skips them). Programs that
    began before the recording are skipped. The command reports how many there were of each.
    """
    console = Console(stderr=True)
    try:
        address = address_of(state_dir, control_plane)
        recorder, failure = asyncio.run(
            _record(address, key_of(state_dir, address), out, length_s, closed_only, console)
        )
    except AgentServingError as error:
        fail(str(error))
    except FileExistsError:
        fail(f"{out}: the file already exists; name a new one")
    except OSError as error:
        fail(f"{out}: {error.strerror}")
    counts = recorder.counts
    for line in remarks(counts, closed_only=closed_only):
        console.print(line, highlight=False, soft_wrap=True)
    if not counts.programs:
        out.unlink()
        fail("no program was recorded: none both began and made a call during the recording")
    settle_systems(out)
    console.print(f"{out}: {counts.programs} programs, {counts.calls} calls", highlight=False, soft_wrap=True)
    if failure:
        fail(f"the recording ended early: {failure}")


def remarks(counts: Counts, *, closed_only: bool) -> list[str]:
    """What was skipped or is incomplete, one sentence each."""
    fate = "skipped" if closed_only else "written as if they had ended with the recording"
    facts = (
        (counts.still_open, f"{counts.still_open} programs were still open: {fate}"),
        (
            counts.began_before,
            f"{counts.began_before} programs had begun before, with {counts.calls_before} calls since: skipped",
        ),
        (
            counts.reopened,
            f"{counts.reopened} programs continued after their end: the rest is recorded as a new program",
        ),
        (counts.calls_without_tokens, f"{counts.calls_without_tokens} calls ended before their first token: skipped"),
        (counts.lost, f"{counts.lost} endings were lost: the recorder fell behind the control plane"),
        (counts.restarts, f"the control plane restarted {counts.restarts} times: endings in the meantime are missing"),
    )
    return [text for count, text in facts if count]


async def _head(client: AsyncClient) -> tuple[RecordingLine, PolicyVersion]:
    policy, engines = await client.get_policy(), await client.list_engines()
    ready = [engine for engine in engines if engine.state is EngineState.READY]
    if not ready:
        fail(f"no engine is ready at {client.address}: there is nothing to record")
    balancer = Balancer(policy.balancer.name.lower()) if policy.balancer else Balancer.PREFIX_AWARE
    slots = min(max(1, engine.capabilities.max_num_seqs) for engine in ready)
    began = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    head = RecordingLine(
        recording=began, policy=to_dict(policy.policy), balancer=balancer, engines=len(ready), max_num_seqs=slots
    )
    return head, policy


async def _record(
    address: str, api_key: str, out: Path, length_s: float | None, closed_only: bool, console: Console
) -> tuple[Recorder, str]:
    """The recorder, and why the recording ended early; empty when it did not."""
    recorder, stop = Recorder(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncClient(address, api_key=api_key) as client:
        head, policy = await _head(client)
        with TraceWriter(out, head) as file, _bar(console, length_s) as progress:
            reader = asyncio.create_task(_read(client, recorder, file, progress))
            failure = await _until_end(reader, stop, length_s, progress)
            if closed_only:
                recorder.drop_rest()
            for lines in recorder.rest():
                file.write(lines)
        with contextlib.suppress(AgentServingError):
            if (await client.get_policy()).version != policy.version:
                console.print("the policy changed during the recording: the file names the first one")
    return recorder, failure


async def _until_end(reader: asyncio.Task[None], stop: asyncio.Event, length_s: float | None, bar: Progress) -> str:
    """Waits for the signal, the end of the duration or a failure of reading; gives the reason of a failure.

    Errors of the file are raised (OSError).
    """
    stopped, clock = asyncio.create_task(stop.wait()), asyncio.get_running_loop().time
    began = clock()
    try:
        while not (reader.done() or stopped.done()):
            passed = clock() - began
            if length_s is not None and passed >= length_s:
                break
            bar.update(bar.task_ids[0], completed=passed)
            wait_s = UPDATE_S if length_s is None else min(UPDATE_S, length_s - passed)
            await asyncio.wait({reader, stopped}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({reader}, timeout=GRACE_S)
    finally:
        stopped.cancel()
        reader.cancel()
        await asyncio.gather(reader, stopped, return_exceptions=True)
    error = None if reader.cancelled() else reader.exception()
    if error is not None and not isinstance(error, AgentServingError):
        raise error
    return str(error or "")


async def _read(client: AsyncClient, recorder: Recorder, file: TraceWriter, progress: Progress) -> None:
    """Writes programs as they end, until it is cancelled."""
    bar = progress.task_ids[0]
    async for endings in client.watch_endings():
        if not recorder.begin_us:
            progress.console.print(f"recording {client.address} into {file.path}", highlight=False, soft_wrap=True)
        for lines in recorder.take(endings):
            file.write(lines)
        counts = recorder.counts
        progress.update(
            bar, programs=counts.programs, calls=counts.calls, open=recorder.open_programs, lost=counts.lost
        )


def _bar(console: Console, length_s: float | None) -> Progress:
    text = "recording: {task.fields[programs]} programs, {task.fields[calls]} calls; {task.fields[open]} open"
    progress = Progress(
        TextColumn(text), BarColumn(), TimeElapsedColumn(), console=console, transient=True, refresh_per_second=4
    )
    progress.add_task("recording", total=length_s, programs=0, calls=0, open=0, lost=0)
    return progress
