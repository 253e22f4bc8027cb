"""Terminal reports on disk until the control plane has acknowledged them: `Journal`, and the formats it has had."""

from agentserving_sidecar.journal.entries import Entry
from agentserving_sidecar.journal.journal import (
    Journal,
    JournalFullError,
    JournalInUseError,
    JournalUnavailableError,
    NewerFormatError,
)

__all__ = [
    "Entry",
    "Journal",
    "JournalFullError",
    "JournalInUseError",
    "JournalUnavailableError",
    "NewerFormatError",
]
