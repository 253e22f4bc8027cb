"""How long a step takes. Constants of one A100-80GB with an 8B Llama in bfloat16, each with where it comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CostModel:
    """A roofline: a step reads the weights and the KV cache once, and computes every new token."""

    # 8.03e9 weights of 2 bytes over 2.04 TB/s (A100-80GB SXM data sheet).
    weights_us: float = 7_900.0
    # 32 layers x 8 KV heads x 128 x 2 (K and V) x 2 bytes = 128 KiB a token over the same bandwidth.
    kv_us_per_token: float = 0.064
    # 2 x 8.03e9 flops a token at half of 312 Tflop/s (bfloat16, data sheet).
    compute_us_per_token: float = 103.0
    speed: float = 1.0

    def step_us(self, new_tokens: int, context_tokens: int) -> int:
        """Microseconds of a step that computes `new_tokens` over `context_tokens` of KV; memory and compute overlap."""
        memory = self.weights_us + self.kv_us_per_token * context_tokens
        return max(1, int(max(memory, self.compute_us_per_token * new_tokens) / self.speed))
