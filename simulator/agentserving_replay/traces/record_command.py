"""``agentserving record``: a trace of what a running cluster does, until Ctrl-C."""

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
from agentserving_cli.connection import address_of, default_state_dir, fail
from agentserving_controlplane.engines.load_balancer import Balancer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from agentserving_replay.traces.file import RecordingLine
from agentserving_replay.traces.recording import Counts, Recorder
from agentserving_replay.traces.writer import TraceWriter, settle_systems

# After the end: what ended just before it is still on its way.
LAST_S = 0.5
# How often the bar is looked after.
LOOK_S = 0.5
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}


class Duration(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Seconds, from 90, 90s, 10m or 2h."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Refuses what is none."""
        if isinstance(value, float):
            return value
        told = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smh]?)", str(value).strip())
        if told is None or float(told[1]) <= 0:
            self.fail(f"{value!r} is no duration: write 90s, 10m or 2h", param, ctx)
        return float(told[1]) * _UNITS_S[told[2]]


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A new file.")
@click.option("--for", "length_s", type=Duration(), default=None, help="Like 10m; without it until Ctrl-C.")
@click.option("--closed-only", is_flag=True, help="Leave out programs that are still open at the end.")
@click.option("--state-dir", type=click.Path(path_type=Path), default=default_state_dir, help="Of the local cluster.")
@click.option("--control-plane", default="", help="host:port of another cluster.")
def record(out: Path, length_s: float | None, closed_only: bool, state_dir: Path, control_plane: str) -> None:
    """Write down what programs a running cluster serves: calls, tokens, times, who came after whom; never text.

    The file is what `agentserving replay` and `agentserving tune` read. A program is written when it has ended. When
    the recording ends, programs still open are written as if they had ended then (with --closed-only they are left
    out); programs that had begun before it are left out. How many there were of each is told.
    """
    console = Console(stderr=True)
    try:
        address = address_of(state_dir, control_plane)
        recorder, trouble = asyncio.run(_record(address, out, length_s, closed_only, console))
    except AgentServingError as error:
        fail(str(error))
    except FileExistsError:
        fail(f"{out}: there is such a file already: name a new one")
    except OSError as error:
        fail(f"{out}: {error.strerror}")
    counts = recorder.counts
    for line in told(counts, closed_only=closed_only):
        console.print(line, highlight=False, soft_wrap=True)
    if not counts.programs:
        out.unlink()
        fail("no program was recorded: none began and had a call within the recording")
    settle_systems(out)
    console.print(f"{out}: {counts.programs} programs, {counts.calls} calls", highlight=False, soft_wrap=True)
    if trouble:
        fail(f"the recording ended early: {trouble}")


def told(counts: Counts, *, closed_only: bool) -> list[str]:
    """What a user must know of a recording, beside its programs."""
    left = "left out" if closed_only else "written as if they had ended with the recording"
    facts = (
        (counts.still_open, f"{counts.still_open} programs were still open: {left}"),
        (
            counts.began_before,
            f"{counts.began_before} programs had begun before, with {counts.calls_before} calls since: left out",
        ),
        (counts.again, f"{counts.again} programs went on after their end: from there on programs of their own"),
        (counts.calls_without_tokens, f"{counts.calls_without_tokens} calls ended before any token: left out"),
        (counts.lost, f"{counts.lost} endings were lost: this recorder was too slow for the control plane"),
        (counts.restarts, f"the control plane restarted {counts.restarts} times: what ended meanwhile is not known"),
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
    return RecordingLine(began, to_dict(policy.policy), balancer, len(ready), slots), policy


async def _record(
    address: str, out: Path, length_s: float | None, closed_only: bool, console: Console
) -> tuple[Recorder, str]:
    """What was recorded, and why it ended early, if it did."""
    recorder, stop = Recorder(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncClient(address) as client:
        head, policy = await _head(client)
        with TraceWriter(out, head) as file, _bar(console, length_s) as progress:
            reader = asyncio.create_task(_read(client, recorder, file, progress))
            trouble = await _until_end(reader, stop, length_s, progress)
            if closed_only:
                recorder.drop_rest()
            for lines in recorder.rest():
                file.write(lines)
        with contextlib.suppress(AgentServingError):
            if (await client.get_policy()).version != policy.version:
                console.print("the policy has changed meanwhile: the file names the one it began with")
    return recorder, trouble


async def _until_end(reader: asyncio.Task[None], stop: asyncio.Event, length_s: float | None, bar: Progress) -> str:
    """Until somebody ends it, the time is over, or reading fails (OSError for the file, else the reason is given)."""
    stopped, clock = asyncio.create_task(stop.wait()), asyncio.get_running_loop().time
    began = clock()
    try:
        while not (reader.done() or stopped.done()):
            passed = clock() - began
            if length_s is not None and passed >= length_s:
                break
            bar.update(bar.task_ids[0], completed=passed)
            left = LOOK_S if length_s is None else min(LOOK_S, length_s - passed)
            await asyncio.wait({reader, stopped}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({reader}, timeout=LAST_S)
    finally:
        stopped.cancel()
        reader.cancel()
        await asyncio.gather(reader, stopped, return_exceptions=True)
    error = None if reader.cancelled() else reader.exception()
    if error is not None and not isinstance(error, AgentServingError):
        raise error
    return str(error or "")


async def _read(client: AsyncClient, recorder: Recorder, file: TraceWriter, progress: Progress) -> None:
    """Until cancelled."""
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
