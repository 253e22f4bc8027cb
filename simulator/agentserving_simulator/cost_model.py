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
    """One accelerator: bytes, bytes per second, operations per second in bf16 and FP8 without sparsity."""

    memory_bytes: float
    bandwidth: float
    flops: float
    fp8_flops: float
    link: float
    host_link: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A decoder with grouped-query attention, in bfloat16 unless `fp8`; its KV is bfloat16 in either case."""

    parameters: float
    layers: int
    hidden: int
    kv_heads: int
    head_size: int
    # Weights and their products in FP8.
    fp8: bool = False
    # Query heads times their size; 0 = `hidden`.
    attention: int = 0
    # Of a mixture of experts: the parameters of all experts, how many there are in a layer, and how many a token uses.
    expert_parameters: float = 0.0
    experts: int = 1
    experts_per_token: int = 1

    @property
    def kv_bytes_per_token(self) -> int:
        """K and V, two bytes each, in every layer."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_size

    @property
    def weight_bytes(self) -> float:
        """All weights."""
        return self.parameters * (1 if self.fp8 else 2)

    @property
    def expert_share(self) -> float:
        """Share of a layer's experts that a token uses."""
        return self.experts_per_token / self.experts

    @property
    def active_parameters(self) -> float:
        """Parameters that a token is multiplied with."""
        return self.parameters - self.expert_parameters * (1 - self.expert_share)


# NVIDIA data sheets of A100 80GB SXM, H100 80GB SXM and DGX B200 (an eighth of 1,440 GB, 64 TB/s, 18 and 36 Pflop/s
# without sparsity). Links: NVLink in one direction, and what PCIe 4.0 and 5.0 x16 reach of their 31.5 and 63 GB/s with
# large transfers. An A100 has no FP8: vLLM multiplies such weights in bf16 there (Marlin, W8A16).
GPUS = {
    "a100-80gb": Gpu(
        memory_bytes=85.9e9, bandwidth=2.039e12, flops=312e12, fp8_flops=312e12, link=300e9, host_link=25e9
    ),
    "h100-80gb": Gpu(
        memory_bytes=85.9e9, bandwidth=3.35e12, flops=989e12, fp8_flops=1979e12, link=450e9, host_link=50e9
    ),
    "b200-180gb": Gpu(memory_bytes=180e9, bandwidth=8e12, flops=2250e12, fp8_flops=4500e12, link=900e9, host_link=50e9),
}
# config.json of the models on the hub.
MODELS = {
    "llama-3.1-8b": Model(parameters=8.03e9, layers=32, hidden=4096, kv_heads=8, head_size=128),
    "llama-3.1-70b": Model(parameters=70.6e9, layers=80, hidden=8192, kv_heads=8, head_size=128),
    "falcon-180b": Model(parameters=179.5e9, layers=80, hidden=14848, kv_heads=8, head_size=64),
    # 30.5e9 parameters, 3.3e9 of them active (model card). Experts: 48 layers x 128 x 3 matrices of 2048 x 768.
    "qwen3-30b-a3b-fp8": Model(
        parameters=30.5e9, layers=48, hidden=2048, kv_heads=4, head_size=128, fp8=True, attention=32 * 128,
        expert_parameters=48 * 128 * 3 * 2048 * 768.0, experts=128, experts_per_token=8,
    ),
}  # fmt: skip
# Default number of GPUs per replica: the fewest that leave room for KV (paper, section 6: 1, 4, 8).
PARALLEL = {"llama-3.1-8b": 1, "llama-3.1-70b": 4, "falcon-180b": 8, "qwen3-30b-a3b-fp8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Microseconds. The defaults are a roofline of one A100-80GB with an 8B Llama, for the engine in real time."""

    # 8.03e9 weights of 2 bytes over 2.04 TB/s (A100-80GB SXM data sheet).
    weights_us: float = 7_900.0
    # Of a mixture of experts: reading all of them (not in `weights_us`), and the share of them that a token uses.
    experts_us: float = 0.0
    expert_share: float = 1.0
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

    def read_us(self, tokens: int) -> float:
        """Microseconds to read the weights that a step of `tokens` tokens uses.

        Of the experts those that at least one token uses, if each token draws its own with equal chances.
        """
        if not self.experts_us:
            return self.weights_us
        return self.weights_us + self.experts_us * (1.0 - (1.0 - self.expert_share) ** tokens)

    def step_us(self, new_tokens: int, context_tokens: int, calls: int = 0, pairs: float = 0.0) -> int:
        """Microseconds of a step that computes `new_tokens` over `context_tokens` of KV, for `calls` calls.

        `pairs`: prompt tokens computed in it times the context that each attends to.
        """
        memory = self.read_us(new_tokens) + self.kv_us_per_token * context_tokens
        compute = self.compute_us_per_token * new_tokens + self.attention_us_per_pair * pairs
        took = self.base_us + self.call_us * calls + max(memory, compute)
        return max(1, int(took / self.speed))

    def decode_us(self, calls: int, context_tokens: int, steps: int) -> int:
        """Microseconds of `steps` steps that each produce one token for each of `calls`; the context grows by these.

        Exact as long as all these steps are bound by the same resource, memory or compute (see `even_steps`).
        """
        compute = self.compute_us_per_token * calls
        memory = self.read_us(calls) + self.kv_us_per_token * context_tokens
        each = self.base_us + self.call_us * calls
        if memory >= compute:
            grown = self.kv_us_per_token * calls * (steps * (steps - 1) / 2)
            return max(1, int((steps * (each + memory) + grown) / self.speed))
        return max(1, int(steps * (each + compute) / self.speed))

    def even_steps(self, calls: int, context_tokens: int) -> int:
        """The number of steps for which `decode_us` is exact: until the growing context makes memory the bound."""
        compute = self.compute_us_per_token * calls
        memory = self.read_us(calls) + self.kv_us_per_token * context_tokens
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
    room = count * (card.memory_bytes * MEMORY_SHARE - ACTIVATION_BYTES) - llm.weight_bytes
    if room <= 0:
        raise ValueError(f"{model} does not fit on {count} {gpu}: {llm.weight_bytes / 1e9:.0f} GB of weights")
    reduces = 2 * llm.layers if count > 1 else 0
    # A ring all-reduce sends 2 (n - 1) / n of the message over each link.
    reduced_us = reduces * llm.hidden * 2 * 2 * (count - 1) / count / card.link * 1e6
    bandwidth, flops = card.bandwidth * BANDWIDTH_SHARE * count, card.flops * FLOPS_SHARE * count
    weight_flops = card.fp8_flops * FLOPS_SHARE * count if llm.fp8 else flops
    expert_bytes = llm.weight_bytes * llm.expert_parameters / llm.parameters
    return CostModel(
        weights_us=(llm.weight_bytes - expert_bytes) / bandwidth * 1e6,
        experts_us=expert_bytes / bandwidth * 1e6,
        expert_share=llm.expert_share,
        kv_us_per_token=llm.kv_bytes_per_token / bandwidth * 1e6,
        compute_us_per_token=2 * llm.active_parameters / weight_flops * 1e6 + reduced_us,
        attention_us_per_pair=4 * llm.layers * (llm.attention or llm.hidden) / flops * 1e6,
        base_us=HOST_US + reduces * ALL_REDUCE_US,
        transfer_us_per_token=llm.kv_bytes_per_token / (card.host_link * count) * 1e6,
        num_blocks=int(room / llm.kv_bytes_per_token / BLOCK_SIZE),
    )
