"""The boot of this engine, for the processes that accept its requests: the scheduler writes it next to its socket."""

from __future__ import annotations

import os
from pathlib import Path

_NAME = "boot"


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
