"""Ids of stored responses (OpenAI's Responses API) that name the engine which has them: resp_ENGINE_HEX. Pure.

The engine's middleware makes them, and pickers read them. vLLM's own ids are resp_HEX, and clients may choose others.
"""

from __future__ import annotations

import re

from agentserving.contract.ids import EngineId

# What may stand in a path and in JSON as it is.
_ENGINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_ID = re.compile(r"resp_(.+)_[0-9a-f]{32}")


def response_id(engine_id: str, unique: str) -> str:
    """`unique`: 32 lower-case hexadecimal digits. Empty for an engine whose name cannot be part of an id."""
    return f"resp_{engine_id}_{unique}" if _ENGINE.fullmatch(engine_id) else ""


def engine_of(response: str) -> EngineId | None:
    """The engine that an id names; None for an id of another form."""
    found = _ID.fullmatch(response)
    return EngineId(found[1]) if found is not None else None
