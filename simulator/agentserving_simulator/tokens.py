"""Text to tokens and back, without a tokenizer: pieces of up to four characters, each with the space before it.

English prose has about four characters a token with common tokenizers. More importantly, an answer has the same tokens
when it comes back inside the next prompt, so that the prefix cache finds a program's earlier calls.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

_TOKEN = re.compile(r"\s?\S{1,4}|\s")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tokenize(text: str) -> list[str]:
    """Splits a text into tokens; their concatenation is the text."""
    return _TOKEN.findall(text)


def word(seed: int, index: int) -> str:
    """The token at `index` of an answer; answers with different seeds differ."""
    return f" {_LETTERS[(seed >> (index % 8)) % 26]}{index % 10}"


def block_hash(before: bytes, tokens: Sequence[str]) -> bytes:
    """Hash of a full block and, through `before`, of all blocks before it."""
    return hashlib.blake2b(before + "\x00".join(tokens).encode("utf-8", "replace"), digest_size=16).digest()
