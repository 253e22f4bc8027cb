"""/v1/embeddings: directions that are close for texts with the same words. Pure.

Feature hashing: each token adds or takes away one in a dimension that its hash chooses.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from typing import Any

from agentserving_simulator.answers.asked import BadRequestError, checked_prompt, count, too_long
from agentserving_simulator.tokens import tokenize

DEFAULT_DIMENSIONS, MAX_DIMENSIONS = 256, 4096
MAX_INPUTS = 2048


def respond(body: dict[str, Any], model: str, max_model_len: int) -> dict[str, Any]:
    """The answer to a request. Raises BadRequestError."""
    dimensions = count(body.get("dimensions") or DEFAULT_DIMENSIONS, "dimensions", MAX_DIMENSIONS)
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise BadRequestError(f"encoding_format must be float or base64, not {form!r}", "encoding_format")
    inputs = _inputs(body.get("input"), max_model_len)
    vectors = [embedding(tokens, dimensions) for tokens in inputs]
    tokens = sum(len(each) for each in inputs)
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": index, "embedding": _packed(vector) if form == "base64" else vector}
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def embedding(tokens: list[str], dimensions: int) -> list[float]:
    """A vector of length one."""
    vector = [0.0] * dimensions
    for token in tokens:
        digest = hashlib.blake2b(token.strip().encode("utf-8", "replace"), digest_size=8).digest()
        number = int.from_bytes(digest, "big")
        vector[(number >> 1) % dimensions] += 1.0 if number & 1 else -1.0
    length = math.sqrt(sum(each * each for each in vector))
    if not length:
        return [1.0, *vector[1:]]
    return [each / length for each in vector]


def _inputs(given: object, max_model_len: int) -> list[list[str]]:
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    listed = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    if len(listed) > MAX_INPUTS:
        raise BadRequestError(f"input has {len(listed)} texts; at most {MAX_INPUTS}", "input")
    inputs = []
    for each in listed:
        if isinstance(each, str) and each:
            tokens = tokenize(checked_prompt(each, max_model_len))
        elif isinstance(each, list) and each and all(isinstance(token, int) for token in each):
            tokens = [str(token) for token in each]
        else:
            raise BadRequestError("input must be text, token ids, or a list of either, and not empty", "input")
        if len(tokens) > max_model_len:
            too_long(len(tokens), max_model_len)
        inputs.append(tokens)
    return inputs


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
