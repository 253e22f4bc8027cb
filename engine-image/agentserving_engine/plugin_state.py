"""What the parts of the plugin share: the scheduler itself, the queue, the book and the counters."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from agentserving.contract.channel import Load

from agentserving_engine.call_book import CallBook
from agentserving_engine.channel_server import ChannelServer
from agentserving_engine.policy import CallQueue, PrefillCost


def now_us() -> int:
    """The clock of everything in the plugin: monotonic, microseconds."""
    return time.monotonic_ns() // 1000


@dataclass(slots=True)
class PluginState:
    """`vllm` is the Scheduler that the plugin extends; only its main thread touches any of this."""

    vllm: Any
    calls: CallQueue
    book: CallBook
    load: Load = field(default_factory=Load)
    channel: ChannelServer | None = None
    prefill: PrefillCost = field(default_factory=PrefillCost)
    policy_version: int = 0
    # The order of running calls may have changed since `running` was last sorted.
    order_changed: bool = False
