"""The pure policy core: Algorithm 1 of the paper over any policy value, and the retention of KV during tool waits.

Imports only agentserving.contract. `EnginePolicy` is what an engine runs; `CallQueue` and `Retention` are its parts.
"""

from agentserving_engine.policy.call_queue import CallQueue
from agentserving_engine.policy.engine_policy import CallEnd, Engine, EnginePolicy, origin_of
from agentserving_engine.policy.kv_traits import KvLayout, KvTraits
from agentserving_engine.policy.preemption import Room
from agentserving_engine.policy.prefill_cost import PrefillCost, is_overwritten, wanted_blocks
from agentserving_engine.policy.retention import EndedContext, Memory, Retention, Wanted
from agentserving_engine.policy.state import CallFacts, CallStats, Decision
from agentserving_engine.policy.tool_waits import Origin

__all__ = [
    "CallEnd",
    "CallFacts",
    "CallQueue",
    "CallStats",
    "Decision",
    "EndedContext",
    "Engine",
    "EnginePolicy",
    "KvLayout",
    "KvTraits",
    "Memory",
    "Origin",
    "PrefillCost",
    "Retention",
    "Room",
    "Wanted",
    "is_overwritten",
    "origin_of",
    "wanted_blocks",
]
