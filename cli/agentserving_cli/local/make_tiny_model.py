"""Creates a tiny random Llama with a byte-level tokenizer: a model to serve without a download.

With `windowed` it is a Gemma 3, whose layers with a sliding window and with full attention have a group each in the KV
cache.

Usage: python make_tiny_model.py OUT_DIR [windowed]   (needs transformers and tokenizers: the vLLM environment has both)
Weights are not written: serve it with ``--load-format dummy``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Gemma3TextConfig, LlamaConfig, PreTrainedTokenizerFast

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


def llama(vocabulary: int) -> LlamaConfig:
    """Two layers with full attention."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=1,
    )
    config.architectures = ["LlamaForCausalLM"]
    return config


def gemma(vocabulary: int) -> Gemma3TextConfig:
    """Two layers with full attention, and two with a window of four blocks of CPU vLLM."""
    config = Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=8192,
        sliding_window=512,
        layer_types=["sliding_attention", "full_attention"] * 2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    config.architectures = ["Gemma3ForCausalLM"]
    return config


def make(out: Path, windowed: bool) -> None:
    """Writes config.json and the tokenizer into `out`."""
    vocabulary = save_tokenizer(out)
    config = gemma(vocabulary) if windowed else llama(vocabulary)
    config.save_pretrained(out)


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2:] == ["windowed"])
