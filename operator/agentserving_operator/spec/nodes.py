"""The part of the spec about engines on several nodes: what fits, and what cannot be combined."""

from __future__ import annotations

from agentserving_operator.spec.accelerator import Accelerator
from agentserving_operator.spec.fields import Rule

# Flags that the fields set, or that would make an engine's nodes disagree.
SET_BY_FIELDS = (
    "--nnodes", "--node-rank", "--master-addr", "--master-port", "--headless", "--tensor-parallel-size", "-tp",
    "--pipeline-parallel-size", "-pp", "--distributed-executor-backend",
)  # fmt: skip


def parallel_sizes(accelerator: Accelerator, nodes: int) -> tuple[int, int]:
    """Tensor and pipeline parallel sizes; the rules below have made sure that they fit.

    Absent ones: on one node all devices share each layer. On several, those of a node do, and each node is a stage.
    """
    tensor, pipeline = accelerator.tensor_parallel_size, accelerator.pipeline_parallel_size
    devices = max(1, accelerator.count) * nodes
    if nodes > 1 and pipeline is None:
        pipeline = max(1, devices // tensor) if tensor is not None else nodes
    pipeline = pipeline or 1
    return tensor or max(1, devices // (accelerator.data_parallel_size * pipeline)), pipeline


def _fits(accelerator: Accelerator, nodes: int) -> bool:
    sizes = accelerator.tensor_parallel_size, accelerator.pipeline_parallel_size
    product, both = (sizes[0] or 1) * (sizes[1] or 1), None not in sizes
    if accelerator.count == 0:
        return nodes == 1 or product % nodes == 0 or (not both and nodes % product == 0)
    devices = accelerator.count * nodes
    if nodes == 1:
        return product <= devices
    return product == devices if both else devices % product == 0


_TP = "(has(self.accelerator.tensorParallelSize) ? self.accelerator.tensorParallelSize : 1)"
_PP = "(has(self.accelerator.pipelineParallelSize) ? self.accelerator.pipelineParallelSize : 1)"
_BOTH = "(has(self.accelerator.tensorParallelSize) && has(self.accelerator.pipelineParallelSize))"
_DEVICES = "(self.accelerator.count * self.nodes)"
_FLAGS = " || ".join(f"a.startsWith('{each}')" for each in SET_BY_FIELDS)

RULES_OF_NODES = (
    Rule(
        f"self.accelerator.count == 0 || self.nodes > 1 || {_TP} * {_PP} <= self.accelerator.count",
        "accelerator.tensorParallelSize times pipelineParallelSize must be at most accelerator.count",
        lambda e: e.accelerator.count == 0 or e.nodes > 1 or _fits(e.accelerator, e.nodes),
        "accelerator.tensorParallelSize",
    ),
    Rule(
        f"self.accelerator.count == 0 || self.nodes == 1 || {_DEVICES} == {_TP} * {_PP} || "
        f"(!{_BOTH} && {_DEVICES} % ({_TP} * {_PP}) == 0)",
        "accelerator.tensorParallelSize times pipelineParallelSize must be accelerator.count times nodes, all devices "
        "of the engine; one of them alone must divide that",
        lambda e: e.accelerator.count == 0 or e.nodes == 1 or _fits(e.accelerator, e.nodes),
        "accelerator.tensorParallelSize",
    ),
    Rule(
        f"self.accelerator.count > 0 || self.nodes == 1 || ({_TP} * {_PP}) % self.nodes == 0 || "
        f"(!{_BOTH} && self.nodes % ({_TP} * {_PP}) == 0)",
        "accelerator.tensorParallelSize times pipelineParallelSize must be a multiple of nodes: each node has as many "
        "ranks",
        lambda e: e.accelerator.count > 0 or e.nodes == 1 or _fits(e.accelerator, e.nodes),
        "accelerator.tensorParallelSize",
    ),
    Rule(
        "self.nodes == 1 || self.accelerator.dataParallelSize == 1",
        "nodes excludes accelerator.dataParallelSize: the schedulers of an engine's ranks must be in its first pod, "
        "where the sidecar reaches them",
        lambda e: e.nodes == 1 or e.accelerator.data_parallel_size == 1,
        "nodes",
    ),
    Rule(
        "self.nodes == 1 || self.kvOffloadGiB == 0",
        "nodes excludes kvOffloadGiB: vLLM shares the host memory of one node between the devices of an engine",
        lambda e: e.nodes == 1 or e.kv_offload_gib == 0,
        "nodes",
    ),
    Rule(
        f"self.nodes == 1 || !self.extraArgs.exists(a, {_FLAGS})",
        "extraArgs may not set with nodes what the fields set: nodes and the sizes of accelerator",
        lambda e: e.nodes == 1 or not any(each.startswith(SET_BY_FIELDS) for each in e.extra_args),
        "extraArgs",
    ),
)
