"""Settings of a virtual engine. Pure."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from agentserving.contract.kv_obstacles import KvObstacle
from agentserving_engine.policy import KvTraits

from agentserving_simulator.cost_model import BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """vLLM's settings of the same names; `host_blocks` is the capacity of the offloading connector."""

    max_num_seqs: int = 48
    _: KW_ONLY
    max_batched_tokens: int = 2048
    prefix_caching: bool = True
    host_blocks: int = 0
    block_size: int = BLOCK_SIZE
    # 0 = all blocks that fit into memory with the weights.
    num_blocks: int = 0

    def kv_traits(self, blocks: int) -> KvTraits:
        """What the policy may rely on, with a cache of so many blocks."""
        return KvTraits(
            block_size=self.block_size,
            blocks=blocks,
            findable=self.prefix_caching,
            reloadable=bool(self.host_blocks),
            # What host memory has is loaded, not computed: there is no point in retaining KV.
            retention_obstacle=KvObstacle.KV_CONNECTOR if self.host_blocks else None,
            working_set_obstacle=None if self.prefix_caching else KvObstacle.NO_PREFIX_CACHING,
            host_blocks=self.host_blocks,
        )
