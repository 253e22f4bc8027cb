"""Journals for tests: opened and closed again, filled, and copied as a kill leaves them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from agentserving.contract.channel import CallRecord
from agentserving_sidecar.journal import (
    Journal,
)

Opener = Callable[..., Journal]
FILE = "journal.sqlite"


@pytest.fixture
def opener() -> Iterator[Opener]:
    """Opens journals and closes their files at the end of the test."""
    with ExitStack() as files:
        yield lambda *args, **kwargs: files.enter_context(closing(Journal(*args, **kwargs)))


def after_kill(directory: Path) -> Path:
    """The directory as SIGKILL would leave it: every file as it is now, nothing closed."""
    copy = Path(tempfile.mkdtemp(dir=directory.parent)) / directory.name
    shutil.copytree(directory, copy)
    return copy


def record(name: str, service_us: int = 5) -> CallRecord:
    return CallRecord(
        call_id=name, attempt=1, program_id="p", root_program_id="p", tenant="default", thread_id="t" * 60,
        attained_service_us=0, service_us=service_us, outcome="completed",
    )  # fmt: skip


def records(count: int, first: int = 0) -> list[CallRecord]:
    return [record(f"p.1.{number}") for number in range(first, first + count)]


def ids(journal: Journal) -> list[str]:
    return [entry.record.call_id for entry in journal.entries()]
