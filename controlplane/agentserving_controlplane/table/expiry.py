"""When calls, programs and rows have outlived their use. Pure: ages are differences of the monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving_controlplane.table.rows import ProgramRow
from agentserving_controlplane.table.states import ProgramState

# A program that waits for a tool may be idle for so many times the idle limit, or twice as long as its client expects,
# but for a day at most.
TOOL_WAIT_PATIENCE = 6
MAX_TOOL_WAIT_US = 24 * 3600 * 1_000_000
# A program with a spent budget waits so long for an addition: people decide, and may be asleep. Programs that people
# have paused wait without end, and their number is bounded.
SPENT_PATIENCE_US = 24 * 3600 * 1_000_000
# The row of a cancelled program is retained for so many times the usual retention: while it is there, an agent that
# does not know of the cancellation cannot open the program again by calling.
CANCELLED_RETENTION = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of age, microseconds (settings.py has their meaning and defaults)."""

    program_idle_us: int
    call_idle_us: int
    closed_retention_us: int


def idle_limit_us(row: ProgramRow, limits: Limits) -> int:
    """Age at which an open program without calls has been abandoned."""
    if row.state is not ProgramState.TOOL_WAIT:
        return limits.program_idle_us
    return max(TOOL_WAIT_PATIENCE * limits.program_idle_us, min(2 * row.tool_expected_us, MAX_TOOL_WAIT_US))


def retention_us(row: ProgramRow, limits: Limits) -> int:
    """Age at which the row of a closed program is no longer needed."""
    return limits.closed_retention_us * (CANCELLED_RETENTION if row.cancelled else 1)
