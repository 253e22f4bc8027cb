"""A LoRA adapter for the tiny model, made here: random, and strong enough to change what the model says."""

from __future__ import annotations

import json
import random
from array import array
from pathlib import Path

RANK = 8
# Of the tiny model (agentserving_cli/local/make_tiny_model.py).
HIDDEN, LAYERS = 256, 2
TARGETS = ("q_proj", "v_proj")


def make_adapter(directory: Path, seed: int) -> Path:
    """Writes an adapter as PEFT does; returns the directory."""
    directory.mkdir(parents=True)
    dice = random.Random(seed)
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.{target}.{part}.weight": (
            shape,
            array("f", (dice.gauss(0, 1) for _ in range(RANK * HIDDEN))),
        )
        for layer in range(LAYERS)
        for target in TARGETS
        for part, shape in (("lora_A", [RANK, HIDDEN]), ("lora_B", [HIDDEN, RANK]))
    }
    (directory / "adapter_model.safetensors").write_bytes(_safetensors(tensors))
    config = {
        "peft_type": "LORA", "base_model_name_or_path": "tiny", "r": RANK, "lora_alpha": 16, "lora_dropout": 0.0,
        "bias": "none", "target_modules": list(TARGETS), "task_type": "CAUSAL_LM", "inference_mode": True,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def _safetensors(tensors: dict[str, tuple[list[int], array[float]]]) -> bytes:
    """The format: length of a JSON header, the header, the numbers."""
    header, data = {}, b""
    for name, (shape, numbers) in tensors.items():
        more = numbers.tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(more)]}
        data += more
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data
