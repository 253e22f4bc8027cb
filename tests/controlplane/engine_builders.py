"""Builders for tests of engines and of the choice among them."""

from __future__ import annotations

from typing import Any

from agentserving.contract.ids import CallId, EngineId
from agentserving_controlplane.engines.engine import Engine
from agentserving_controlplane.engines.facts import Capabilities, Load
from agentserving_controlplane.engines.health import Health
from agentserving_controlplane.engines.registry import EngineRegistry
from controlplane.table_builders import key


def attached(engines: EngineRegistry, name: str, **fields: Any) -> Engine:
    """A ready engine, unless the fields say otherwise."""
    engine = engines.ensure(EngineId(name))
    given_fields = {"attached": True, "address": f"{name}:8000", "health": Health.SERVING, "boot_id": "b", **fields}
    for field, value in given_fields.items():
        setattr(engine, field, value)
    return engine


def loaded(
    engines: EngineRegistry, name: str, in_flight: int = 0, *, prefilled: int = 0, prefill: float = 0.0, **fields: Any
) -> Engine:
    """A ready engine with 8 slots, 100,000 tokens of KV cache and calls in flight. `prefill`: cost of a token, us."""
    return attached(
        engines,
        name,
        calls={CallId(f"{name}-{number}"): key("others") for number in range(in_flight)},
        capabilities=Capabilities(max_num_seqs=8, num_blocks=10_000, block_size=10),
        load=Load(prompt_tokens=prefilled, prefill_us_per_token=prefill),
        **fields,
    )
