"""The part of the spec about devices: how many an engine has, how it splits the model over them, where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from agentserving_operator.spec.fields import Rule, integer, items, mapping, text
from agentserving_operator.spec.parts import TaintEffect, Toleration

# The four A100 boards, as NVIDIA's GPU feature discovery labels nodes.
A100_PRODUCTS = (
    "NVIDIA-A100-SXM4-80GB",
    "NVIDIA-A100-SXM4-40GB",
    "NVIDIA-A100-80GB-PCIe",
    "NVIDIA-A100-PCIE-40GB",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """Where engine pods run; by default on A100s. Ignored by simulated engines."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.dataParallelSize == 1 || self.count == 0 || self.dataParallelSize * "
            "(has(self.tensorParallelSize) ? self.tensorParallelSize : 1) * "
            "(has(self.pipelineParallelSize) ? self.pipelineParallelSize : 1) == self.count",
            "count must be dataParallelSize times tensorParallelSize times pipelineParallelSize (absent: 1): the "
            "devices of all ranks",
            lambda a: a.data_parallel_size == 1
            or a.count in (0, a.data_parallel_size * (a.tensor_parallel_size or 1) * (a.pipeline_parallel_size or 1)),
            "dataParallelSize",
        ),
    )

    resource_name: str = text(
        "Extended resource name of the device.",
        253,
        default="nvidia.com/gpu",
        min_length=1,
        pattern=r"^[a-zA-Z0-9]([-./a-zA-Z0-9]*[a-zA-Z0-9])?$",
    )
    count: int = integer("Devices per engine, on each of its nodes; 0: none (CPU).", 0, 64, default=1)
    tensor_parallel_size: int | None = integer(
        "Devices that compute one layer together. Absent: those that the other sizes leave.", 1, 512, default=None
    )
    pipeline_parallel_size: int | None = integer(
        "Stages, each with a part of the layers. Absent: 1; with several nodes what tensorParallelSize leaves, or one "
        "for each node.",
        1, 64, default=None,
    )  # fmt: skip
    data_parallel_size: int = integer(
        "Ranks of an engine: copies of the model, or of all but its experts, behind one address. Each has a scheduler "
        "and a KV cache of its own; a program stays on one of them.",
        1, 64, default=1,
    )  # fmt: skip
    product_label: str = text(
        "Node label with the device's product name.", 253, default="nvidia.com/gpu.product", min_length=1
    )
    products: tuple[str, ...] = items(
        "Nodes labelled with one of these; empty: any node.", 16, list_type="set", default=A100_PRODUCTS, max_length=63
    )
    node_selector: Mapping[str, str] = mapping("Further node labels.", 16, 63)
    tolerations: tuple[Toleration, ...] = items(
        "Taints that engine pods tolerate.",
        16,
        default=(Toleration(key="nvidia.com/gpu", effect=TaintEffect.NO_SCHEDULE),),
    )
