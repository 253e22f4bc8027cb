"""The form of a key: `as_<id>_<secret>`. Pure; needs the standard library only, since clients read it."""

from __future__ import annotations

import re

# 8 characters to find a key by, and 32 random bytes in base64url.
_KEY = re.compile(r"as_([a-z0-9]{8})_[A-Za-z0-9_-]{43}")


def parse(text: str) -> str | None:
    """The id of a key; None for text that is no key."""
    match = _KEY.fullmatch(text)
    return match[1] if match is not None else None
