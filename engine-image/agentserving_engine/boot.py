"""The boot of this engine, for the processes that accept its requests: the scheduler writes it next to its socket."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

_NAME = "boot"
_PROC = Path("/proc")


def new_boot() -> str:
    """The boot of an engine with one scheduler."""
    return uuid.uuid4().hex


def boot_of_parent(proc: Path = _PROC) -> str:
    """One boot for all ranks of an engine: they are children of one process and end together.

    A process is identified by its id, the tick at which it started, and the boot of the kernel. Raises OSError.
    """
    parent = os.getppid()
    # The command's name, in parentheses, may contain anything.
    started = (proc / str(parent) / "stat").read_text().rpartition(")")[2].split()[19]
    kernel = (proc / "sys/kernel/random/boot_id").read_text().strip()
    return uuid.uuid5(uuid.UUID(kernel), f"{parent} {started}").hex


def write_boot(directory: Path, boot_id: str) -> None:
    """Replaces the boot of an earlier process. Raises OSError."""
    new = directory / f"{_NAME}.new"
    new.write_text(boot_id)
    os.replace(new, directory / _NAME)


def read_boot(directory: Path) -> str:
    """ "" while there is none."""
    try:
        return (directory / _NAME).read_text()
    except OSError:
        return ""
