"""How glibc's malloc shares memory between threads: one arena for all of them.

By default each thread of gRPC core gets an arena of its own, up to eight a core. What one of them has freed stays with
it: a flood of HTTP/2 frames left 450 MB with a sidecar that needs 70. Python's own lock admits one thread at a time to
most allocations, so arenas win nothing here (docs/decisions/0237-one-malloc-arena.md has the measurement).
"""

from __future__ import annotations

import ctypes
import os

# M_ARENA_MAX of glibc's malloc.h.
_ARENA_MAX = -8
# Read by glibc itself when the process starts.
VARIABLE = "MALLOC_ARENA_MAX"


def share_one_arena() -> bool:
    """Call it before threads start. Leaves a number that the user's environment gives.

    False when nothing was changed: because of that variable, or because this is another libc than glibc.
    """
    if VARIABLE in os.environ:
        return False
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    return choose is not None and bool(choose(_ARENA_MAX, 1))
