"""The policy as engines execute it, where the control plane computes its levels. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from agentserving.contract.policy import Policy, Source

from agentserving_controlplane.policy.auto import Choice, Decided, decide
from agentserving_controlplane.policy.contention import Contention
from agentserving_controlplane.policy.gittins import Sizes


def computed(policy: Policy, sizes: Sizes, contention: Contention, before: Iterable[Choice], now_us: int) -> Decided:
    """The policy with levels from the sizes of programs; unchanged if its levels are fixed. `now_us`: Unix time."""
    if policy.source is Source.GITTINS:
        return Decided(sizes.relevel(policy))
    if policy.source is Source.AUTO:
        return decide(policy, sizes, contention, before, now_us)
    return Decided(policy)
