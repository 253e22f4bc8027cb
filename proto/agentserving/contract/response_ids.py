"""Ids of stored responses (OpenAI's Responses API) that name the engine which has them: resp_ENGINE_HEX. Pure.

The engine's middleware makes them, and pickers read them. vLLM's own ids are resp_HEX, and clients may choose others.
Of the 32 digits at the end the first 12 are a hash of the tenant, where there is one: a picker refuses an id that one
tenant has learned of another. The other 80 bits are random.
"""

from __future__ import annotations

import hashlib
import re

from agentserving.contract.ids import EngineId

# What may stand in a path and in JSON as it is.
_ENGINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_TAG_DIGITS = 12
_ID = re.compile(r"resp_(.+)_([0-9a-f]{12})[0-9a-f]{20}")


def _tag(tenant: str) -> str:
    return hashlib.sha256(tenant.encode()).hexdigest()[:_TAG_DIGITS]


def response_id(engine_id: str, unique: str, tenant: str = "") -> str:
    """`unique`: 32 lower-case hexadecimal digits. Empty for an engine whose name cannot be part of an id."""
    if not _ENGINE.fullmatch(engine_id):
        return ""
    return f"resp_{engine_id}_{_tag(tenant)}{unique[_TAG_DIGITS:]}" if tenant else f"resp_{engine_id}_{unique}"


def is_of_another(response: str, tenant: str) -> bool:
    """True when an id shows that the response belongs to another tenant; ids of other forms show nothing."""
    found = _ID.fullmatch(response)
    return found is not None and found[2] != _tag(tenant)


def engine_of(response: str) -> EngineId | None:
    """The engine that an id names; None for an id of another form."""
    found = _ID.fullmatch(response)
    return EngineId(found[1]) if found is not None else None
