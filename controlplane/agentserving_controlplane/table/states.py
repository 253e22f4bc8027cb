"""Closed enums of the table. Numbers equal those of the contract (types.proto) and are what the store holds."""

from __future__ import annotations

from enum import IntEnum


class ProgramState(IntEnum):
    """Where a program is in its life. PAUSED is derived from the root's flag and never stored."""

    ACTIVE = 1
    TOOL_WAIT = 2
    PAUSED = 3
    CLOSED = 4


class Outcome(IntEnum):
    """How a program or a call ended; NONE while it goes on."""

    NONE = 0
    COMPLETED = 1
    CANCELLED = 2
    FAILED = 3
    EXPIRED = 4
    REJECTED = 5
