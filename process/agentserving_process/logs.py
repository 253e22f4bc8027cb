"""Logging of a process: one JSON object a line on stderr, from structlog and from the libraries' own loggers alike.

Writing a log line never raises: a full disk behind stderr, or a reader that has gone, must not end the task that logs.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, TextIO

import structlog

_SHARED: list[Any] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso")]


def configure(stream: TextIO | None = None, *, libraries: int = logging.WARNING) -> None:
    """Sets up structlog at INFO, and the standard library's loggers at `libraries`. Call it once, in main."""
    output = stream or sys.stderr
    structlog.configure(
        processors=[*_SHARED, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=repr)],
        logger_factory=lambda *_: _Lines(output),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,
    )
    handler = _Handler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=repr),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(libraries)


class _Lines:
    """A structlog logger that writes whole lines and ignores an output that cannot be written."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def msg(self, line: str) -> None:
        # ValueError: the stream is closed.
        with contextlib.suppress(OSError, ValueError):
            self._output.write(line + "\n")
            self._output.flush()

    log = debug = info = warn = warning = err = error = critical = fatal = failure = exception = msg


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """The standard library prints a traceback to the stream that just failed; drop the line instead."""
