"""Consistent reads of files that are replaced while in use and belong together: certificates, keys of tickets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def settled(read: Callable[[], T]) -> T:
    """What `read` returns twice in a row: replacing several files takes more than one step. Raises what it raises."""
    before, found = read(), read()
    while found != before:
        before, found = found, read()
    return found
