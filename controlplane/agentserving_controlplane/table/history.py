"""Which programs changed at which revision, so that watchers can resume. Bounded; a look costs what is new. Pure."""

from __future__ import annotations

from collections import deque

from agentserving.contract.ids import ProgramId, ProgramKey, Tenant

from agentserving_controlplane.errors import GoneError
from agentserving_controlplane.table.rows import NO_PROGRAM

KEPT = 20_000


class History:
    """Revisions count up by one for each set of changes, from `first`."""

    def __init__(self, first: int, kept: int = KEPT) -> None:
        self.revision = first
        self._changes: deque[tuple[int, ProgramKey, bool]] = deque(maxlen=kept)
        # Every change after this revision is still recorded.
        self._complete_since = first

    def begin(self) -> None:
        """Starts the next revision: changes noted from now on belong to it."""
        self.revision += 1

    def note(self, key: ProgramKey, *, removed: bool) -> None:
        """Records that a program changed."""
        if len(self._changes) == self._changes.maxlen:
            self._complete_since = self._changes[0][0]
        self._changes.append((self.revision, key, removed))

    def after(self, revision: int, tenant: Tenant, program_id: ProgramId = NO_PROGRAM) -> dict[ProgramId, bool]:
        """A tenant's programs (or the one) that changed after a revision; True = it was removed. GoneError."""
        if not self._complete_since <= revision <= self.revision:
            raise GoneError("REVISION_COMPACTED", f"revision {revision} is no longer in the history: list again")
        found: dict[ProgramId, bool] = {}
        for at, key, removed in reversed(self._changes):
            if at <= revision:
                break
            if key.tenant == tenant and program_id in ("", key.program_id):
                found.setdefault(key.program_id, removed)
        return found
