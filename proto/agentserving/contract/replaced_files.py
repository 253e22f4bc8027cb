"""Files of which several belong together, and which are replaced while in use: certificates, keys of tickets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def settled(read: Callable[[], T]) -> T:
    """What `read` finds twice: whoever replaces files does not do it in one step. Raises what it raises."""
    before, found = read(), read()
    while found != before:
        before, found = found, read()
    return found
