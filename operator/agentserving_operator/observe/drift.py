"""Whether a live object is as desired: every field that we set is there and equal. Pure.

Fields that we do not set belong to the API server's defaults and to others. A field that we no longer set is told by
the hash in the annotation. Without this comparison every visit would write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?\Z")
_UNITS: dict[str, Decimal] = {"": Decimal(1), "m": Decimal("0.001")}
_UNITS |= {unit: Decimal(1000) ** (i + 1) for i, unit in enumerate("kMGTPE")}
_UNITS |= {f"{unit}i": Decimal(1024) ** (i + 1) for i, unit in enumerate("KMGTPE")}


def matches(desired: Any, live: Any) -> bool:
    """True when applying `desired` would change nothing that we own."""
    if isinstance(desired, Mapping):
        if not isinstance(live, Mapping):
            return not desired and live is None
        return all(matches(value, live.get(key)) for key, value in desired.items())
    if isinstance(desired, Sequence) and not isinstance(desired, str):
        if not isinstance(live, Sequence) or isinstance(live, str):
            return not desired and live is None
        return len(desired) == len(live) and all(matches(a, b) for a, b in zip(desired, live, strict=True))
    if live is None:
        # The API server leaves out what is empty.
        return not desired
    return bool(desired == live) or _same_quantity(desired, live)


def _same_quantity(desired: Any, live: Any) -> bool:
    """1000m is stored as 1."""
    if not isinstance(desired, str) or not isinstance(live, str):
        return False
    found = [_QUANTITY.match(each) for each in (desired, live)]
    values = [Decimal(each[1]) * _UNITS[each[2] or ""] for each in found if each is not None]
    return len(values) == 2 and values[0] == values[1]
