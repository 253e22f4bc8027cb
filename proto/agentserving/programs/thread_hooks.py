"""Carries the program into OS threads and thread pools, as contexts carry it into tasks.

A thread belongs to the program that it is started in, an item of a pool to the one that it is submitted in. The pool's
threads themselves belong to none: they serve other programs later.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any

from agentserving.programs import context
from agentserving.programs.carrying import CallFor, Patch


def patches(_: CallFor) -> list[Patch]:
    """Those of the standard library."""
    return [(Thread, "start", _start), (ThreadPoolExecutor, "submit", _submit)]


def _start(original: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(original)
    def start(thread: Any) -> None:
        run = context.carried(thread.run)
        if run is not None:
            thread.run = run
        original(thread)

    return start


def _submit(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def submit(pool: Any, function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        carried = context.carried(function)
        if carried is None:
            return original(pool, function, *args, **named)
        with context.outside():
            return original(pool, carried, *args, **named)

    return submit
