"""Which earlier prompt a prompt repeats, and how far, by the hashes of its token blocks. Pure.

A block's hash covers the block and everything before it. So a hash that is found again must be found at the same place,
after the same predecessor: the hashes of all prompts form a forest, in which a prompt is a path from a root.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentserving_replay.importing.errors import ImportFailedError


@dataclass(slots=True)
class Blocks:
    """The blocks of all prompts so far. `last` maps a hash to (place, predecessor, the last prompt that has it)."""

    block_size: int
    _last: dict[int, tuple[int, int | None, int]] = field(default_factory=dict)

    def add(self, where: str, prompt: int, hashes: Sequence[int]) -> tuple[int, int]:
        """Adds prompt number `prompt`; returns the last earlier prompt that shares most leading blocks with it (-1 =
        none), and the number of these blocks. ImportFailedError when the hashes do not chain."""
        found, blocks = -1, 0
        before: int | None = None
        for place, block in enumerate(hashes):
            known = self._last.get(block)
            if known is not None and known[:2] != (place, before):
                raise ImportFailedError(
                    where,
                    f"hash_ids[{place}]: block {block} follows {_name(before)} here, but followed {_name(known[1])}"
                    f" as hash_ids[{known[0]}] before: hashes must chain, each covering all blocks before it",
                )
            if known is not None and place == blocks:
                found, blocks = known[2], place + 1
            self._last[block] = (place, before, prompt)
            before = block
        return found, blocks


def _name(block: int | None) -> str:
    return "nothing" if block is None else f"block {block}"


def check_length(where: str, hashes: Sequence[int], tokens: int, block_size: int) -> None:
    """ImportFailedError when a prompt has more hashes than blocks, or none for most of it."""
    most = -(-tokens // block_size)
    if len(hashes) > most:
        raise ImportFailedError(where, f"hash_ids: {len(hashes)} for {tokens} tokens, which are {most} blocks")


def shared_tokens(blocks: int, block_size: int, prompt_tokens: int, earlier_tokens: int) -> int:
    """Tokens that a prompt shares by its first `blocks` blocks with an earlier one, whose last block may be partial.

    Hashes cover prompts, so it is unknown whether the answer to the earlier one is repeated: it is assumed not to be.
    """
    return max(0, min(blocks * block_size, prompt_tokens - 1, earlier_tokens))
