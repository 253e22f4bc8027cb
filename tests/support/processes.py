"""The processes below another one, while processes come and go."""

from __future__ import annotations

import psutil


def command_lines(pid: int) -> dict[psutil.Process, list[str]]:
    """The arguments of each living descendant of a process, from parents to children. Zombies are left out."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found[process] = process.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            # It ended after it was listed.
            continue
    return found


def running(pid: int, word: str) -> list[psutil.Process]:
    """The descendants of a process that have `word` in their command line."""
    return [process for process, argv in command_lines(pid).items() if word in " ".join(argv)]
