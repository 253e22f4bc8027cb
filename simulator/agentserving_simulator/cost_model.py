"""How long a step takes: a roofline model over data sheets, with a source for each constant. Pure.

A step reads the weights and the KV cache once and computes every new token. Memory and compute overlap; the host's work
and the links between GPUs do not. `cost_model("a100-80gb", "llama-3.1-8b")` builds one from the tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

BLOCK_SIZE = 16
# Share of the data sheet's bandwidth that kernels streaming weights reach, and of its bf16 flops that prefill reaches.
# With these and HOST_US one A100 decodes a single 8B call at 11 ms a token, as vLLM does; no ratio depends on them. On
# one H100, vLLM 0.32 was measured (benchmarks/gpu.py) at 6.3 ms and 22.6 us a prefill token: the model says 7.0 and
# 32.5.
BANDWIDTH_SHARE, FLOPS_SHARE = 0.8, 0.5
# Time a step in which the GPU waits for vLLM's scheduler, input preparation and sampling.
HOST_US = 1_000.0
# One all-reduce between GPUs of a node, small message (NCCL over NVLink).
ALL_REDUCE_US = 8.0
# vLLM's default share of the memory, and the part of it for activations and CUDA graphs on each GPU.
MEMORY_SHARE, ACTIVATION_BYTES = 0.9, 3e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One accelerator: bytes, bytes per second, bf16 operations per second."""

    memory_bytes: float
    bandwidth: float
    flops: float
    link: float
    host_link: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A dense decoder with grouped-query attention, in bfloat16."""

    parameters: float
    layers: int
    hidden: int
    kv_heads: int
    head_size: int

    @property
    def kv_bytes_per_token(self) -> int:
        """K and V, two bytes each, in every layer."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_size


# NVIDIA data sheets of A100 80GB SXM and H100 80GB SXM. Links: NVLink in one direction, and what PCIe 4.0 and 5.0 x16
# reach of their 31.5 and 63 GB/s with large transfers.
GPUS = {
    "a100-80gb": Gpu(memory_bytes=85.9e9, bandwidth=2.039e12, flops=312e12, link=300e9, host_link=25e9),
    "h100-80gb": Gpu(memory_bytes=85.9e9, bandwidth=3.35e12, flops=989e12, link=450e9, host_link=50e9),
}
# config.json of the models on the hub.
MODELS = {
    "llama-3.1-8b": Model(parameters=8.03e9, layers=32, hidden=4096, kv_heads=8, head_size=128),
    "llama-3.1-70b": Model(parameters=70.6e9, layers=80, hidden=8192, kv_heads=8, head_size=128),
    "falcon-180b": Model(parameters=179.5e9, layers=80, hidden=14848, kv_heads=8, head_size=64),
}
# Default number of GPUs per replica: the fewest that leave room for KV (paper, section 6: 1, 4, 8).
PARALLEL = {"llama-3.1-8b": 1, "llama-3.1-70b": 4, "falcon-180b": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Microseconds. The defaults are a roofline of one A100-80GB with an 8B Llama, for the engine in real time."""

    # 8.03e9 weights of 2 bytes over 2.04 TB/s (A100-80GB SXM data sheet).
    weights_us: float = 7_900.0
    # 32 layers x 8 KV heads x 128 x 2 (K and V) x 2 bytes = 128 KiB a token over the same bandwidth.
    kv_us_per_token: float = 0.064
    # 2 x 8.03e9 flops a token at half of 312 Tflop/s (bfloat16, data sheet).
    compute_us_per_token: float = 103.0
    # 4 x 32 layers x 4096 flops for each token of context that a new token attends to, at the same half.
    attention_us_per_pair: float = 0.0034
    # Constant part of a step, and the part for each call in it.
    base_us: float = 0.0
    call_us: float = 0.0
    # KV of a token between host and GPU.
    transfer_us_per_token: float = 5.2
    # Blocks of 16 tokens that fit into memory with the weights.
    num_blocks: int = 27_000
    speed: float = 1.0

    def step_us(self, new_tokens: int, context_tokens: int, calls: int = 0, pairs: float = 0.0) -> int:
        """Microseconds of a step that computes `new_tokens` over `context_tokens` of KV, for `calls` calls.

        `pairs`: prompt tokens computed in it times the context that each attends to.
        """
        memory = self.weights_us + self.kv_us_per_token * context_tokens
        compute = self.compute_us_per_token * new_tokens + self.attention_us_per_pair * pairs
        took = self.base_us + self.call_us * calls + max(memory, compute)
        return max(1, int(took / self.speed))

    def decode_us(self, calls: int, context_tokens: int, steps: int) -> int:
        """Microseconds of `steps` steps that each produce one token for each of `calls`; the context grows by these.

        Exact as long as all these steps are bound by the same resource, memory or compute (see `even_steps`).
        """
        compute = self.compute_us_per_token * calls
        memory = self.weights_us + self.kv_us_per_token * context_tokens
        each = self.base_us + self.call_us * calls
        if memory >= compute:
            grown = self.kv_us_per_token * calls * (steps * (steps - 1) / 2)
            return max(1, int((steps * (each + memory) + grown) / self.speed))
        return max(1, int(steps * (each + compute) / self.speed))

    def even_steps(self, calls: int, context_tokens: int) -> int:
        """The number of steps for which `decode_us` is exact: until the growing context makes memory the bound."""
        compute = self.compute_us_per_token * calls
        memory = self.weights_us + self.kv_us_per_token * context_tokens
        if memory >= compute or not self.kv_us_per_token:
            return 1 << 30
        return max(1, math.ceil((compute - memory) / (self.kv_us_per_token * calls)))


def cost_model(gpu: str, model: str, parallel: int = 0) -> CostModel:
    """The cost of `model` on `parallel` GPUs (0 = its default). ValueError lists the known names."""
    if gpu not in GPUS:
        raise ValueError(f"no GPU {gpu!r}; there are {', '.join(GPUS)}")
    if model not in MODELS:
        raise ValueError(f"no model {model!r}; there are {', '.join(MODELS)}")
    card, llm = GPUS[gpu], MODELS[model]
    count = parallel or PARALLEL[model]
    room = count * (card.memory_bytes * MEMORY_SHARE - ACTIVATION_BYTES) - 2 * llm.parameters
    if room <= 0:
        raise ValueError(f"{model} does not fit on {count} {gpu}: {2 * llm.parameters / 1e9:.0f} GB of weights")
    reduces = 2 * llm.layers if count > 1 else 0
    # A ring all-reduce sends 2 (n - 1) / n of the message over each link.
    reduced_us = reduces * llm.hidden * 2 * 2 * (count - 1) / count / card.link * 1e6
    bandwidth, flops = card.bandwidth * BANDWIDTH_SHARE * count, card.flops * FLOPS_SHARE * count
    return CostModel(
        weights_us=2 * llm.parameters / bandwidth * 1e6,
        kv_us_per_token=llm.kv_bytes_per_token / bandwidth * 1e6,
        compute_us_per_token=2 * llm.parameters / flops * 1e6 + reduced_us,
        attention_us_per_pair=4 * llm.layers * llm.hidden / flops * 1e6,
        base_us=HOST_US + reduces * ALL_REDUCE_US,
        transfer_us_per_token=llm.kv_bytes_per_token / (card.host_link * count) * 1e6,
        num_blocks=int(room / llm.kv_bytes_per_token / BLOCK_SIZE),
    )
