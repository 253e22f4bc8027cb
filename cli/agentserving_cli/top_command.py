"""`top`: programs and engines on one screen, again and again. Keys are read while the terminal allows it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

from rich.console import Console, RenderableType
from rich.live import Live

from agentserving_cli.top_view import DOWN, ESCAPE, PAGE_DOWN, PAGE_UP, UP, TopView

# What terminals send for keys without a character.
_SEQUENCES = {
    "\x1b[A": UP, "\x1bOA": UP, "\x1b[B": DOWN, "\x1bOB": DOWN, "\x1b[5~": PAGE_UP, "\x1b[6~": PAGE_DOWN,
}  # fmt: skip
Screen = Callable[[TopView], RenderableType]


def watch(console: Console, screen: Screen, interval_s: float) -> None:
    """Shows `screen` every `interval_s`, and at each key, until q or Ctrl-C."""
    view = TopView()
    live = Live(screen(view), console=console, screen=True, auto_refresh=False)
    with contextlib.suppress(KeyboardInterrupt), _keys() as keys, live:
        while not view.ended:
            for key in keys(interval_s):
                view.press(key, page=max(1, console.height - 10))
            live.update(screen(view), refresh=True)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], list[str]]]:
    """A function that waits at most so many seconds for keys. Without a terminal to read from it only waits."""
    if not sys.stdin.isatty():
        yield _only_wait
        return
    source = sys.stdin.fileno()
    before = termios.tcgetattr(source)
    # Ctrl-C still interrupts.
    tty.setcbreak(source)
    try:
        yield lambda interval_s: _read(source, interval_s)
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)


def _only_wait(interval_s: float) -> list[str]:
    time.sleep(interval_s)
    return []


def _read(source: int, interval_s: float) -> list[str]:
    ready, _, _ = select.select([source], [], [], interval_s)
    if not ready:
        return []
    data = os.read(source, 1024)
    # The terminal is gone: without this the loop would not rest.
    return split_keys(data.decode(errors="replace")) if data else ["q"]


def split_keys(text: str) -> list[str]:
    """The keys in what a terminal sent; sequences of keys that mean nothing here are dropped."""
    keys: list[str] = []
    at = 0
    while at < len(text):
        if text[at] != ESCAPE or at + 1 == len(text) or text[at + 1] not in "[O":
            keys.append(text[at])
            at += 1
            continue
        end = at + 2
        while end < len(text) and not "\x40" <= text[end] <= "\x7e":
            end += 1
        if (known := _SEQUENCES.get(text[at : end + 1])) is not None:
            keys.append(known)
        at = end + 1
    return keys
