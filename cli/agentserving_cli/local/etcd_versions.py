"""Versions of etcd that its maintainers advise against. Pure."""

from __future__ import annotations

import re

# "etcd v3.5.[0-2] is not recommended for production": a member that is killed under load may lose data unnoticed.
# The newest that PyPI has is among them.
_CORRUPTING = re.compile(r"etcd Version: (3\.5\.[0-2])\b")


def caution(version_text: str) -> str:
    """One line for the user, from what `etcd --version` prints; "" when there is nothing to say."""
    found = _CORRUPTING.search(version_text)
    if found is None:
        return ""
    return (
        f"etcd {found[1]}: a crash under load may corrupt its data unnoticed. Enough to try things out; for anything "
        f"else put etcd 3.5.3 or newer on PATH, or set ETCD_BIN"
    )
