"""The limit of open files: each connection is one, and the soft limit is 1,024 on many systems."""

from __future__ import annotations

import resource


def raise_limit() -> int:
    """Raises the soft limit of this process, and of what it becomes or starts, to the hard one; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
