"""Quantities of Kubernetes, such as 500m and 8Gi, as numbers. Pure."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

# https://github.com/kubernetes/apimachinery/blob/master/pkg/api/resource/quantity.go
_FACTORS = {
    "n": Decimal(10) ** -9, "u": Decimal(10) ** -6, "m": Decimal(10) ** -3, "": Decimal(1), "k": Decimal(10) ** 3,
    **{suffix: Decimal(10) ** (3 * power) for power, suffix in enumerate("MGTPE", 2)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
}  # fmt: skip
# An exponent or a suffix, not both: 1E is an exa, 1E3 a thousand.
_QUANTITY = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)([A-Za-z]{0,2})")


def parse_quantity(quantity: Any) -> Decimal:
    """The number that a quantity stands for; numbers stand for themselves. Raises ValueError when it is no quantity."""
    found = _QUANTITY.fullmatch(str(quantity))
    if found is None or found[2] not in _FACTORS:
        raise ValueError(f"not a quantity: {quantity!r}")
    return Decimal(found[1]) * _FACTORS[found[2]]
