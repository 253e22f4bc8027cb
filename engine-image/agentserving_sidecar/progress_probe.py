"""Does the engine make progress? /health says 200 while it hangs in a step. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving.channel import Load


@dataclass(frozen=True, slots=True)
class Progress:
    """`stuck_us` must exceed the longest prefill step."""

    stuck_us: int = 5_000_000

    def is_stuck(self, load: Load | None) -> bool:
        """True when calls run and no step has ended for `stuck_us`. An idle engine is not stuck."""
        return load is not None and load.running > 0 and load.last_step_age_us >= self.stuck_us
