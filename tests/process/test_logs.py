"""Logs are JSON lines from whatever logger they come, and logging never raises."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from agentserving_process import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**before)


def test_structlog_and_the_standard_library_write_the_same_form() -> None:
    output = io.StringIO()
    logs.configure(output)
    structlog.get_logger().info("serving", port=1)
    logging.getLogger("kopf").warning("watch %s", "ended")
    ours, theirs = (json.loads(line) for line in output.getvalue().splitlines())
    assert (ours["event"], ours["level"], ours["port"]) == ("serving", "info", 1)
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("watch ended", "warning", "kopf")
    assert ours.keys() >= {"timestamp"}
    assert theirs.keys() >= {"timestamp"}


def test_an_error_carries_its_traceback_on_one_line() -> None:
    output = io.StringIO()
    logs.configure(output)
    try:
        raise ValueError("x")
    except ValueError as error:
        structlog.get_logger().error("failed", exc_info=error)
    (line,) = output.getvalue().splitlines()
    assert "ValueError: x" in json.loads(line)["exception"]


def test_what_json_cannot_say_is_written_as_its_repr() -> None:
    output = io.StringIO()
    logs.configure(output)
    structlog.get_logger().info("odd", value={1, 2}, raw=b"\xff")
    assert json.loads(output.getvalue())["raw"] == repr(b"\xff")


@pytest.mark.parametrize("library", [False, True])
def test_a_full_disk_or_a_closed_stream_does_not_fail_the_caller(library: bool) -> None:
    with open("/dev/full", "w") as full:
        logs.configure(full)
        (logging.getLogger("x").warning if library else structlog.get_logger().info)("lost")
        full_closed = full
        # What could not be written is still in the buffer, and closing tries again.
        with pytest.raises(OSError, match="No space left"):
            full_closed.close()
    logs.configure(full_closed)
    (logging.getLogger("x").warning if library else structlog.get_logger().info)("lost too")
