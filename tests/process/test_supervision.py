"""A process that loses a background task says so and ends; optional tasks are restarted; SIGTERM stops it in order."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from agentserving_process.backoff import Backoff
from agentserving_process.supervision import (
    CANNOT_START,
    OK,
    RESTARTS,
    TASK_FAILED,
    Supervisor,
    TaskFailedError,
    Work,
)

NOW = Backoff(first_s=0.001, max_s=0.001)


async def forever() -> None:
    await asyncio.Event().wait()


async def failing() -> None:
    raise ValueError("out of order")


async def returning() -> None:
    return


async def cancelled_from_outside() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (failing, "ValueError: out of order"),
        (returning, "returned, although"),
        (cancelled_from_outside, "cancelled by something other"),
    ],
)
async def test_a_task_that_ends_takes_the_others_with_it_and_says_why(work: Work, reason: str) -> None:
    other: asyncio.Task[None] | None = None

    async def serve() -> None:
        nonlocal other
        async with Supervisor() as supervisor:
            other = supervisor.start("other", forever)
            supervisor.start("worker", work)
            await supervisor.stop_requested()

    with pytest.raises(TaskFailedError, match=reason) as caught:
        await serve()
    assert caught.value.task == "worker"
    assert other is not None
    assert other.cancelled()


async def test_the_original_exception_is_the_cause() -> None:
    async def serve() -> None:
        async with Supervisor() as supervisor:
            supervisor.start("worker", failing)
            await supervisor.stop_requested()

    with pytest.raises(TaskFailedError) as caught:
        await serve()
    assert isinstance(caught.value.__cause__, ValueError)


async def test_a_failure_interrupts_the_main_task_and_its_cleanup_runs_first() -> None:
    order = []

    async def serve() -> None:
        async with Supervisor() as supervisor:
            supervisor.start("worker", failing)
            try:
                await forever()
            finally:
                order.append("cleaned up")

    with pytest.raises(TaskFailedError):
        await serve()
    assert order == ["cleaned up"]


async def test_leaving_the_block_ends_every_task() -> None:
    async with Supervisor() as supervisor:
        tasks = [supervisor.start(str(number), forever) for number in range(3)]
        supervisor.stop()
        await supervisor.stop_requested()
    assert all(task.cancelled() for task in tasks)


async def test_a_task_that_may_end_ends_without_a_word() -> None:
    async with Supervisor() as supervisor:
        await supervisor.start("once", returning, may_end=True)


@pytest.mark.parametrize("work", [failing, returning, cancelled_from_outside])
async def test_an_optional_task_is_restarted_and_counted(work: Work) -> None:
    runs = 0
    done = asyncio.Event()

    async def counted() -> None:
        nonlocal runs
        runs += 1
        if runs == 4:
            done.set()
            await forever()
        await work()

    before = RESTARTS.labels("optional")._value.get()
    async with Supervisor() as supervisor:
        supervisor.start("optional", counted, restart=NOW)
        async with asyncio.timeout(30):
            await done.wait()
    assert RESTARTS.labels("optional")._value.get() - before == 3


async def test_an_error_of_the_block_itself_is_raised_as_it_is() -> None:
    async def serve() -> None:
        async with Supervisor() as supervisor:
            supervisor.start("worker", forever)
            raise KeyError("x")

    with pytest.raises(KeyError):
        await serve()


# -- the process ---------------------------------------------------------------------------------------------------


def process(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    """A process whose `serve(supervisor)` is `body`."""
    script = tmp_path / "main.py"
    script.write_text(
        "import asyncio, sys\n"
        "from agentserving_process import logs, supervision\n"
        "from agentserving_process.supervision import CannotStartError\n"
        "supervision.CLEANUP_S = 0.3\n"
        "async def forever(): await asyncio.Event().wait()\n"
        "async def failing(): raise ValueError('out of order')\n"
        "async def serve(supervisor):\n"
        + textwrap.indent(textwrap.dedent(body), "    ")
        + "\nlogs.configure()\nsys.exit(supervision.run(serve))\n"
    )
    return subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ended(running: subprocess.Popen[str]) -> tuple[int, list[dict[str, object]]]:
    _, err = running.communicate(timeout=60)
    return running.returncode, [json.loads(line) for line in err.splitlines()]


def test_a_process_whose_task_fails_ends_with_its_own_exit_code_and_a_reason(tmp_path: Path) -> None:
    code, lines = ended(process(tmp_path, "supervisor.start('pump', failing)\nawait supervisor.stop_requested()"))
    assert code == TASK_FAILED
    failure = next(line for line in lines if line["event"] == "task failed, ending the process")
    assert failure["task"] == "pump"
    assert failure["reason"] == "ValueError: out of order"
    assert "Traceback" in str(failure["exception"])


def test_a_process_whose_cleanup_hangs_after_a_failure_ends_all_the_same(tmp_path: Path) -> None:
    body = """
        supervisor.start('pump', failing)
        try:
            await supervisor.stop_requested()
        finally:
            await forever()
    """
    code, lines = ended(process(tmp_path, body))
    assert code == TASK_FAILED
    assert "cleaning up takes too long" in str(lines[-1]["event"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_process_in_order(tmp_path: Path, number: signal.Signals) -> None:
    body = """
        supervisor.start('pump', forever)
        print('up', flush=True)
        await supervisor.stop_requested()
        print('drained', flush=True)
    """
    running = process(tmp_path, body)
    assert running.stdout is not None
    assert running.stdout.readline() == "up\n"
    running.send_signal(number)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == OK
    assert out == "drained\n"


def test_what_a_user_can_repair_is_one_line(tmp_path: Path) -> None:
    code, lines = ended(process(tmp_path, "raise CannotStartError('cannot listen on x:1: no such host')"))
    assert code == CANNOT_START
    assert [line["error"] for line in lines] == ["cannot listen on x:1: no such host"]
    assert "exception" not in lines[0]


def test_a_bug_in_the_main_task_is_logged_with_its_traceback(tmp_path: Path) -> None:
    code, lines = ended(process(tmp_path, "raise KeyError('x')"))
    assert code == TASK_FAILED
    assert "KeyError" in str(lines[-1]["exception"])


def test_an_orphan_s_error_and_a_callback_s_are_logged_and_end_nothing(tmp_path: Path) -> None:
    body = """
        import gc
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        orphan = asyncio.create_task(failing())
        await asyncio.wait({orphan})
        del orphan
        gc.collect()
    """
    code, lines = ended(process(tmp_path, body))
    assert code == OK
    assert [line["event"] for line in lines] == ["unhandled error in the event loop"] * 2
    assert "ZeroDivisionError" in str(lines[0]["exception"])
    assert "out of order" in str(lines[1]["exception"])
