"""Which programs changed at which revision, for watchers that resume. Bounded; what a look costs is what is new."""

from __future__ import annotations

from collections import deque

from agentserving_controlplane.errors import GoneError

KEPT = 20_000


class History:
    """Revisions count up by one for each set of changes, from `first`."""

    def __init__(self, first: int, kept: int = KEPT) -> None:
        self.revision = first
        self._changes: deque[tuple[int, str, str, bool]] = deque(maxlen=kept)
        # Everything after this revision is kept.
        self._since = first

    def begin(self) -> None:
        """The changes noted from now on belong to the next revision."""
        self.revision += 1

    def note(self, tenant: str, program_id: str, *, removed: bool) -> None:
        """A program changed."""
        if len(self._changes) == self._changes.maxlen:
            self._since = self._changes[0][0]
        self._changes.append((self.revision, tenant, program_id, removed))

    def after(self, revision: int, tenant: str, program_id: str = "") -> dict[str, bool]:
        """Programs of a tenant (or the one) changed after a revision, and whether they are gone. GoneError."""
        if not self._since <= revision <= self.revision:
            raise GoneError("REVISION_COMPACTED", f"revision {revision} is no longer kept: list again")
        found: dict[str, bool] = {}
        for at, owner, changed, removed in reversed(self._changes):
            if at <= revision:
                break
            if owner == tenant and program_id in ("", changed):
                found.setdefault(changed, removed)
        return found
