"""Does the engine make progress? /health says 200 while it hangs in a step, or is stopped. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving.contract.channel import HEARTBEAT_S, Load

# A plugin that hangs in a step still beats, from a thread; one whose process is stopped does not even that.
MIN_SILENT_US = int(3 * HEARTBEAT_S * 1e6)


@dataclass(frozen=True, slots=True)
class Progress:
    """`stuck_us` must exceed the longest prefill step."""

    stuck_us: int = 5_000_000

    def is_stuck(self, load: Load | None, silent_us: int = 0) -> bool:
        """True when calls run and no step has ended for `stuck_us`, or when a connected plugin has been silent so long.

        `silent_us`: since it was last heard, 0 when it is not connected. An idle engine is not stuck.
        """
        if load is None:
            return False
        stepless = load.running > 0 and load.last_step_age_us + silent_us >= self.stuck_us
        return stepless or silent_us >= max(self.stuck_us, MIN_SILENT_US)
