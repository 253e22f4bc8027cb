"""Keeps the plugin's faults from the engine: a block that raises is left, counted, and the engine continues.

An exception out of a scheduler hook ends the engine process and every call in it, so each hook does its work under
``with guard("what"):``. The first failure requests a repair: the policy's queue is rebuilt from vLLM's own lists (see
`EngineSession.rebuild`). After `MAX_HOOK_ERRORS` failures the policy is off until the engine restarts.
"""

from __future__ import annotations

import logging
from types import TracebackType

from agentserving.contract.channel import Load

logger = logging.getLogger("vllm.agentserving")

MAX_HOOK_ERRORS = 20


class Guard:
    """Counts into `load.hook_errors`. Not re-entrant: blocks under one guard are never nested."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._what = ""
        self.needs_repair = False

    @property
    def off(self) -> bool:
        """The policy has failed too often and is switched off."""
        return self._load.hook_errors >= MAX_HOOK_ERRORS

    def __call__(self, what: str) -> Guard:
        """Names the work of the next block, for the log."""
        self._what = what
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failed(self._what, error)
        return True

    def failed(self, what: str, error: Exception) -> None:
        """Counts a failure that the caller has caught."""
        self.needs_repair = True
        if not self.off:
            logger.error("agentserving: %s failed; vLLM continues without it", what, exc_info=error)
        self._load.hook_errors += 1
        if self._load.hook_errors == MAX_HOOK_ERRORS:
            logger.error("agentserving: %d failures, the policy is off until the engine restarts", MAX_HOOK_ERRORS)
