"""A secret that the processes of one engine pod share: a file in the directory that only they mount.

The engine makes it, or whichever of its server processes is first; the sidecar reads it for each request.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

_NAME = "pod-secret"
_BYTES = 32


def made_pod_secret(directory: Path) -> str:
    """The secret of this directory, created if there is none. OSError."""
    path = directory / _NAME
    handle, scratch = tempfile.mkstemp(prefix=f".{_NAME}.", dir=directory)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(_BYTES))
        # Engine and sidecar may be different users with one group.
        os.fchmod(handle, 0o640)
    try:
        # Unlike a rename, this leaves the secret of a process that was faster.
        os.link(scratch, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(scratch)
    return path.read_text()


def read_pod_secret(directory: Path) -> str:
    """The secret; "" while there is none that this process may read."""
    try:
        return (directory / _NAME).read_text()
    except OSError:
        return ""
