"""The pure policy core: Algorithm 1 of the paper over any policy value.

Imports nothing but agentserving.contract.policy.
"""

from agentserving_engine.policy.call_queue import CallQueue
from agentserving_engine.policy.prefill_cost import PrefillCost, lost_tokens, wanted_blocks
from agentserving_engine.policy.retention import Retention, Wanted
from agentserving_engine.policy.state import CallFacts, CallStats, Decision

__all__ = [
    "CallFacts",
    "CallQueue",
    "CallStats",
    "Decision",
    "PrefillCost",
    "Retention",
    "Wanted",
    "lost_tokens",
    "wanted_blocks",
]
