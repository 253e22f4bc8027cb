"""How much of a prompt repeats an earlier call's context, estimated from token counts: prompts are never read. Pure.

A call's prompt length and its cached tokens are known. Cached tokens are only a lower bound of what is shared: tokens
that were evicted, or computed on another engine, are not found. The estimate:

1. A call's *base* is the last call of its thread if the call's prompt is at least as long as that one's. Otherwise it
   is the call with the longest context among those that it came after and whose prompts are no longer than its own.
   Such a prompt has *grown* out of its base. It is assumed to repeat the base's whole context, prompt and output, if it
   is longer than that (an agent's next turn), and otherwise only the base's prompt (the reasoning was dropped).
2. Cache hits can disprove rule 1 for a program. If at least three of its prompts have grown out of a base on the same
   engine, none of them found three quarters of its base's prompt, and its calls did find something, the prompts are
   merely alike. Finding nothing at all proves nothing: caching may be off, or everything was evicted.
3. Cached tokens are shared in any case. A prompt that has not grown (a compacted context) shares only those.
4. The cached tokens of a call without a base are the system prompt. Programs of one name have one system prompt: its
   length is the most frequent count, and calls that found less (nothing, on an engine new to the class) are assumed to
   begin with it too. Calls of unnamed programs share it only if they found that much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from agentserving_replay.traces.lineage import Lineage, RecordedCall

# Grown prompts needed to disprove rule 1, and the share of the base's prompt that counts as found.
ENOUGH, FOUND = 3, 0.75
# Shorter bases prove nothing, because engines cache whole blocks.
SHORT_TOKENS = 64


def bases(calls: Sequence[RecordedCall], lineage: Lineage) -> list[int]:
    """For each call its base (rule 1), or the longest candidate when it has not grown; -1: none."""
    base_of: list[int] = []
    for at, call in enumerate(calls):
        before = lineage.before(at)
        parents = [index for index in lineage.parents(at) if calls[index].program_id == call.program_id]
        own = [i for i in before if calls[i].thread_id == call.thread_id]
        last = max(own, key=lambda index: calls[index].end_us, default=-1)
        if last >= 0 and calls[last].prompt_tokens <= call.prompt_tokens:
            base_of.append(last)
            continue
        candidates = {*before, *parents}
        grown = [index for index in candidates if calls[index].prompt_tokens <= call.prompt_tokens]
        base_of.append(max(sorted(grown or candidates), key=lambda index: calls[index].context_tokens, default=-1))
    return base_of


def disproved(calls: Sequence[RecordedCall], base_of: Sequence[int]) -> set[str]:
    """Programs whose prompts did not grow out of each other although their lengths suggest it (rule 2)."""
    grown: Counter[str] = Counter()
    confirmed: set[str] = set()
    for call, base in zip(calls, base_of, strict=True):
        if base < 0:
            continue
        before = calls[base]
        if before.engine_id != call.engine_id or not SHORT_TOKENS <= before.prompt_tokens <= call.prompt_tokens:
            continue
        grown[call.program_id] += 1
        if call.cached_tokens >= FOUND * before.prompt_tokens:
            confirmed.add(call.program_id)
    with_hits = {call.program_id for call in calls if call.cached_tokens}
    return {
        program_id for program_id, count in grown.items() if count >= ENOUGH and program_id in with_hits
    } - confirmed


def shared(call: RecordedCall, base: RecordedCall | None, *, alike: bool) -> int:
    """Tokens of a prompt that repeat its base's context, or the system prompt. `alike`: rule 2 applies."""
    if base is None:
        return min(call.cached_tokens, call.prompt_tokens - 1)
    guess = 0
    if call.prompt_tokens >= base.prompt_tokens and not alike:
        guess = base.context_tokens if call.prompt_tokens > base.context_tokens else base.prompt_tokens
    return max(0, min(max(guess, call.cached_tokens), base.context_tokens, call.prompt_tokens - 1))


def system_tokens(found: Iterable[int]) -> int:
    """Length of a class's system prompt, from the cached tokens of calls without a base (rule 4); 0 = none."""
    counts = Counter(tokens for tokens in found if tokens > 0)
    return max(counts, key=lambda tokens: (counts[tokens], tokens), default=0)


def of_system(found: int, prompt_tokens: int, system: int, *, named: bool) -> int:
    """Tokens of the system prompt that a call without a base begins with (rule 4)."""
    return system if system < prompt_tokens and (named or found >= system) else 0
