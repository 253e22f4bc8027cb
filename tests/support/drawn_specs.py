"""Specs that nobody would write: valid ones with a few values replaced, removed or added, from a seed."""

from __future__ import annotations

import copy
import random
from typing import Any

from support.spec_samples import VALID

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 1 << 31, 1 << 63, 1.5, "", "a", "None", "Keys", "10Gi", "-1", "a b", "x" * 300,
    "\n", "\u0000", "ü", [], {}, ["a"], ["a", "a"], [{}], {"name": "a"}, {"a": {"b": []}},
)  # fmt: skip
FIELDS = ("name", "replicas", "type", "etcd", "external", "unknown", "size", "limits", "clients", "issuer")


def drawn(seed: int) -> Any:
    """A spec."""
    chance = random.Random(seed)
    spec = copy.deepcopy(chance.choice(VALID))
    for _ in range(chance.randint(1, 3)):
        places = list(_places(spec))
        holder, key = chance.choice(places)
        match chance.randrange(3):
            case 0:
                holder[key] = copy.deepcopy(chance.choice(VALUES))
            case 1 if isinstance(holder, dict):
                del holder[key]
            case _ if isinstance(holder, dict):
                holder[chance.choice(FIELDS)] = copy.deepcopy(chance.choice(VALUES))
        if not spec:
            break
    return spec


def _places(node: Any) -> Any:
    """(holder, key) of every value below a node."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        yield node, key
        yield from _places(value)
