"""Why a call's prompt was not in the prefix cache, as far as this engine can know. Pure.

For each program the engine remembers the hashes of its last contexts, 32 bits a block. Block hashes are chained
(vllm/v1/core/kv_cache_utils.py: `hash_block_tokens`), so two contexts are equal up to the first difference, which a
binary search finds: O(log blocks) for each remembered context when a call starts, O(blocks) when one ends.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from agentserving.contract.ids import ProgramKey
from agentserving.contract.phases import PrefixMiss

# Blocks remembered in all: 4 MB, some forty times the KV of a GPU. The contexts used last stay.
MAX_BLOCKS = 1 << 20
MAX_CONTEXTS_A_PROGRAM = 8


class Prompt(NamedTuple):
    """A prompt as its engine looks it up: hashes of its full blocks, and the salt that is in them.

    `found`: tokens that were in the cache; `usable`: those that could have been (the last one is always computed).
    """

    hashes: Sequence[Hashable]
    block_size: int
    found: int
    usable: int
    salt: str = ""


class _Context(NamedTuple):
    blocks: array[int]
    prompt_blocks: int
    thread_id: str
    salt: str


class Prefixes:
    """Contexts of programs that ended calls here; the program used least recently is forgotten first."""

    def __init__(self, limit_blocks: int = MAX_BLOCKS) -> None:
        self._limit = limit_blocks
        self._blocks = 0
        self._contexts: OrderedDict[ProgramKey, list[_Context]] = OrderedDict()

    def __len__(self) -> int:
        """Blocks remembered."""
        return self._blocks

    def explain(self, program: ProgramKey, thread_id: str, prompt: Prompt) -> tuple[PrefixMiss, int]:
        """What became of a prompt's prefix, and how many tokens it has in common with an earlier context here."""
        contexts = self._contexts.get(program)
        if contexts is None:
            return PrefixMiss.FIRST, 0
        alike = [context for context in contexts if context.salt == prompt.salt]
        if not alike:
            return PrefixMiss.SALT, 0
        # Of equal ones, the newest.
        common, best = max(((_common(each.blocks, prompt.hashes), each) for each in reversed(alike)), key=_first)
        tokens = common * prompt.block_size
        if prompt.found < min(tokens, prompt.usable):
            return PrefixMiss.EVICTED, tokens
        if thread_id and all(each.thread_id != thread_id for each in alike):
            return PrefixMiss.FIRST, tokens
        if common == len(best.blocks) or common == len(prompt.hashes):
            return PrefixMiss.NONE, tokens
        return PrefixMiss.ANSWER_CHANGED if common >= best.prompt_blocks else PrefixMiss.DIVERGED, tokens

    def remember(
        self, program: ProgramKey, thread_id: str, hashes: Sequence[Hashable], prompt_blocks: int, salt: str = ""
    ) -> None:
        """A call has ended with this context, of which `prompt_blocks` full blocks are its prompt."""
        context = _Context(array("I", [_short(each) for each in hashes]), prompt_blocks, thread_id, salt)
        contexts = self._contexts.setdefault(program, [])
        self._contexts.move_to_end(program)
        # A context that this one goes on from is its past, also when its answer was rendered in another way.
        past = next((each for each in contexts if _continues(each, context, hashes)), None)
        if past is None and len(contexts) >= MAX_CONTEXTS_A_PROGRAM:
            past = contexts[0]
        if past is not None:
            contexts.remove(past)
            self._blocks -= len(past.blocks)
        contexts.append(context)
        self._blocks += len(context.blocks)
        while self._blocks > self._limit:
            _, gone = self._contexts.popitem(last=False)
            self._blocks -= sum(len(each.blocks) for each in gone)


def _first(pair: tuple[int, _Context]) -> int:
    return pair[0]


def _short(block_hash: Hashable) -> int:
    return hash(block_hash) & 0xFFFFFFFF


def _common(blocks: array[int], hashes: Sequence[Hashable]) -> int:
    """Leading blocks that two contexts share."""
    return bisect_left(range(min(len(blocks), len(hashes))), True, key=lambda at: blocks[at] != _short(hashes[at]))


def _continues(past: _Context, context: _Context, hashes: Sequence[Hashable]) -> bool:
    same = past.salt == context.salt and past.thread_id == context.thread_id
    return same and _common(past.blocks, hashes) >= max(1, past.prompt_blocks)
