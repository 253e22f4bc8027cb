"""Why a prompt was not in the cache: each reason, and that what is remembered is bounded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving.contract.phases import PrefixMiss
from agentserving_engine.calls.prefixes import MAX_CONTEXTS_A_PROGRAM, Prefixes, Prompt
from hypothesis import given
from hypothesis import strategies as st

P, Q = (ProgramKey(Tenant("t"), ProgramId(name)) for name in "pq")
SIZE = 16


def chain(blocks: str, salt: str = "") -> list[bytes]:
    """Chained hashes of blocks named by letters, as vLLM makes them."""
    before, hashes = salt.encode(), []
    for block in blocks:
        before = hashlib.sha256(before + block.encode()).digest()
        hashes.append(before)
    return hashes


def asked(blocks: str, found: int, salt: str = "") -> Prompt:
    """A prompt of whole blocks and one token more, of which `found` blocks are in the cache."""
    return Prompt(chain(blocks, salt), SIZE, found * SIZE, len(blocks) * SIZE, salt)


def after(context: str = "abcdef", prompt: int = 4, thread: str = "", salt: str = "") -> Prefixes:
    prefixes = Prefixes()
    prefixes.remember(P, thread, chain(context, salt), prompt, salt)
    return prefixes


def test_a_program_without_an_earlier_context_is_first() -> None:
    assert after().explain(Q, "", asked("abcdef", 6)) == (PrefixMiss.FIRST, 0)


def test_a_prompt_that_extends_the_context_and_finds_it_has_no_miss() -> None:
    assert after().explain(P, "", asked("abcdefgh", 6)) == (PrefixMiss.NONE, 6 * SIZE)
    # The last token of a prompt is always computed, so its last whole block may be, too.
    whole = Prompt(chain("abcdef"), SIZE, 5 * SIZE, 5 * SIZE)
    assert after().explain(P, "", whole) == (PrefixMiss.NONE, 6 * SIZE)


def test_a_changed_prompt_diverges_where_it_changed() -> None:
    assert after().explain(P, "", asked("abXdefgh", 2)) == (PrefixMiss.DIVERGED, 2 * SIZE)


def test_a_changed_answer_is_told_apart_from_a_changed_prompt() -> None:
    assert after(prompt=4).explain(P, "", asked("abcdXYZ", 4)) == (PrefixMiss.ANSWER_CHANGED, 4 * SIZE)


def test_blocks_that_were_computed_and_are_gone_were_evicted() -> None:
    assert after().explain(P, "", asked("abcdefgh", 3)) == (PrefixMiss.EVICTED, 6 * SIZE)


def test_another_salt_hides_what_was_computed() -> None:
    assert after(salt="one").explain(P, "", asked("abcdefgh", 0, "other")) == (PrefixMiss.SALT, 0)


def test_a_new_thread_is_first_and_says_what_it_shares_with_others() -> None:
    prefixes = after(thread="one")
    assert prefixes.explain(P, "two", asked("abXYZ", 2)) == (PrefixMiss.FIRST, 2 * SIZE)
    assert prefixes.explain(P, "one", asked("abcdefgh", 6)) == (PrefixMiss.NONE, 6 * SIZE)


def test_contexts_that_alternate_within_a_program_do_not_hide_each_other() -> None:
    prefixes = after("abcd", 3)
    prefixes.remember(P, "", chain("mnop"), 3)
    assert prefixes.explain(P, "", asked("abcdef", 4)) == (PrefixMiss.NONE, 4 * SIZE)
    assert prefixes.explain(P, "", asked("mnopqr", 4)) == (PrefixMiss.NONE, 4 * SIZE)


def test_a_longer_context_replaces_the_one_that_it_goes_on_from() -> None:
    prefixes = after("abcdef", 4)
    prefixes.remember(P, "", chain("abcdXYZ"), 6)
    assert len(prefixes) == 7


@given(st.lists(st.tuples(st.sampled_from("pqr"), st.text("ab", max_size=12)), max_size=60))
def test_memory_is_bounded_and_counts_what_it_holds(ends: Sequence[tuple[str, str]]) -> None:
    prefixes = Prefixes(limit_blocks=40)
    for program, blocks in ends:
        key = ProgramKey(Tenant("t"), ProgramId(program))
        prefixes.remember(key, "", chain(blocks), len(blocks))
        assert 0 <= len(prefixes) <= 40
        known = prefixes._contexts.values()
        assert len(prefixes) == sum(len(each.blocks) for contexts in known for each in contexts)
        assert all(len(contexts) <= MAX_CONTEXTS_A_PROGRAM for contexts in known)
        if blocks and key in prefixes._contexts:
            found = len(blocks)
            assert prefixes.explain(key, "", asked(blocks + "z", found))[0] is PrefixMiss.NONE
