"""How much of a prompt repeats an earlier call's context, estimated from token counts: nobody reads prompts. Pure.

Known of a call is how long its prompt was, and how many of its tokens the engine found cached. The second is only a
lower bound: what was evicted, or computed on another engine, is not found. The rule:

1. A call's *base* is the last call of its thread if its prompt is at least as long as that one's; else, of the calls
   that it came after, the one with the longest context whose prompt is not longer than its own. Such a prompt has
   *grown* out of its base: it is taken to repeat the base's whole context, prompt and output, when it is longer than
   that (an agent's next turn), else only the base's prompt (its reasoning was left out).
2. Unless the program's own caches say otherwise: when at least three of its prompts have grown out of a base that ran
   on the same engine, and none of them found three quarters of its base's prompt, though its calls did find something,
   they only look alike. (That none finds anything proves nothing: caching may be off, or everything was evicted.)
3. What was found cached is shared in any case. A prompt that has not grown (a compacted context) shares only that.
4. What a call without a base found cached is the system prompt. Programs of one name have one: its length is the count
   found most often, and who found less (nothing, on an engine that was new to it) is taken to begin with it as well.
   Calls of programs without a name share it only when they found that much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from agentserving_replay.traces.lineage import Lineage, Ran

# Prompts that must have grown before their caches can disprove it, and the share of the base that counts as found.
ENOUGH, FOUND = 3, 0.75
# Shorter bases prove nothing: an engine caches whole blocks.
SHORT_TOKENS = 64


def bases(calls: Sequence[Ran], lineage: Lineage) -> list[int]:
    """For each call the one that it goes on from (rule 1, or the longest one when it has not grown); -1: none."""
    found: list[int] = []
    for at, call in enumerate(calls):
        before = lineage.before(at)
        parents = [index for index in lineage.parents(at) if calls[index].program_id == call.program_id]
        own = [i for i in before if calls[i].thread_id == call.thread_id]
        last = max(own, key=lambda index: calls[index].end_us, default=-1)
        if last >= 0 and calls[last].prompt_tokens <= call.prompt_tokens:
            found.append(last)
            continue
        candidates = {*before, *parents}
        grown = [index for index in candidates if calls[index].prompt_tokens <= call.prompt_tokens]
        found.append(max(sorted(grown or candidates), key=lambda index: calls[index].context_tokens, default=-1))
    return found


def disproved(calls: Sequence[Ran], base_of: Sequence[int]) -> set[str]:
    """Programs whose prompts only look as if they grew out of each other (rule 2)."""
    looked: Counter[str] = Counter()
    proved: set[str] = set()
    for call, base in zip(calls, base_of, strict=True):
        if base < 0:
            continue
        before = calls[base]
        if before.engine_id != call.engine_id or not SHORT_TOKENS <= before.prompt_tokens <= call.prompt_tokens:
            continue
        looked[call.program_id] += 1
        if call.cached_tokens >= FOUND * before.prompt_tokens:
            proved.add(call.program_id)
    finds = {call.program_id for call in calls if call.cached_tokens}
    return {program_id for program_id, count in looked.items() if count >= ENOUGH and program_id in finds} - proved


def shared(call: Ran, base: Ran | None, *, alike: bool) -> int:
    """Tokens of a prompt that are its base's context, or the system prompt's. `alike`: rule 2 spoke."""
    if base is None:
        return min(call.cached_tokens, call.prompt_tokens - 1)
    guess = 0
    if call.prompt_tokens >= base.prompt_tokens and not alike:
        guess = base.context_tokens if call.prompt_tokens > base.context_tokens else base.prompt_tokens
    return max(0, min(max(guess, call.cached_tokens), base.context_tokens, call.prompt_tokens - 1))


def system_tokens(found: Iterable[int]) -> int:
    """Length of a system prompt, from what calls without a base found of it (rule 4); 0 = there is none."""
    counts = Counter(tokens for tokens in found if tokens > 0)
    return max(counts, key=lambda tokens: (counts[tokens], tokens), default=0)


def of_system(found: int, prompt_tokens: int, system: int, *, named: bool) -> int:
    """How much of the system prompt a call without a base begins with (rule 4)."""
    return system if system < prompt_tokens and (named or found >= system) else 0
