"""Creates a tiny random Llama with a byte-level tokenizer: a model to serve without a download.

With `windowed` it is a Gemma 3, whose layers with a sliding window and with full attention have a group each in the KV
cache; with `state-space` a Granite 4, which has Mamba 2 layers beside attention.

Usage: python make_tiny_model.py OUT_DIR [windowed | state-space]
Needs transformers and tokenizers: the vLLM environment has both. Weights are not written: serve it with
``--load-format dummy``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3TextConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


def save_tokenizer(out: Path) -> int:
    """Writes a tokenizer with a token for each byte into `out`; the size of its vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    out.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(out)
    return len(vocabulary)


def small(vocabulary: int, layers: int) -> dict[str, int]:
    """What the models have in common; `layers`: of all kinds."""
    return {
        "vocab_size": vocabulary, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 8192, "bos_token_id": 0,
        "eos_token_id": 1,
    }  # fmt: skip


def llama(vocabulary: int) -> LlamaConfig:
    """Two layers with full attention."""
    return LlamaConfig(**small(vocabulary, 2), architectures=["LlamaForCausalLM"])


def gemma(vocabulary: int) -> Gemma3TextConfig:
    """Two layers with full attention, and two with a window of four blocks of CPU vLLM."""
    return Gemma3TextConfig(
        **small(vocabulary, 4),
        head_dim=64,
        sliding_window=512,
        layer_types=["sliding_attention", "full_attention"] * 2,
        pad_token_id=1,
        architectures=["Gemma3ForCausalLM"],
    )


def granite(vocabulary: int) -> GraniteMoeHybridConfig:
    """Two Mamba 2 layers, and two with full attention; no experts."""
    return GraniteMoeHybridConfig(
        **small(vocabulary, 4),
        shared_intermediate_size=512,
        layer_types=["mamba", "attention"] * 2,
        num_local_experts=0,
        num_experts_per_tok=0,
        mamba_n_heads=8,
        mamba_n_groups=1,
        mamba_d_state=64,
        mamba_d_head=64,
        position_embedding_type="rope",
        pad_token_id=1,
        architectures=["GraniteMoeHybridForCausalLM"],
    )


# By the argument.
KINDS: dict[str, Callable[[int], PretrainedConfig]] = {"": llama, "windowed": gemma, "state-space": granite}


def make(out: Path, kind: str) -> None:
    """Writes config.json and the tokenizer into `out`."""
    KINDS[kind](save_tokenizer(out)).save_pretrained(out)


if __name__ == "__main__":
    make(Path(sys.argv[1]), "".join(sys.argv[2:]))
