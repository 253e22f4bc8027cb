"""Selects which running calls to preempt for which waiting ones: the batch of Algorithm 1. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

# Inadmissible calls passed over in one decision: its cost must not grow with the queue.
MAX_PASSED_OVER = 64


def select(
    waiting: Iterable[str],
    victims_of: Callable[[str, Sequence[str]], list[str]],
    *,
    free_slots: int,
    free_blocks: int,
    max_preemptions: int,
    need_blocks: Callable[[str], int],
    returns_blocks: Callable[[str], int],
    admissible: Callable[[str], bool],
) -> tuple[list[str], list[str]]:
    """(running calls to preempt, waiting calls to admit), each in the order of the decision.

    `waiting` comes best first. `victims_of(key, preempt)` returns the running calls that may be preempted for a waiting
    one besides those in `preempt`, worst last; the list is consumed. It is called for calls that find no room. Stops at
    the first waiting call that does not fit (paper, Algorithm 1, line 'batch').
    """
    preempt: list[str] = []
    admit: list[str] = []
    passed_over = 0
    for key in waiting:
        if not admissible(key):
            passed_over += 1
            if passed_over == MAX_PASSED_OVER:
                break
            continue
        need = need_blocks(key)
        chosen: list[str] = []
        gained = 0
        left = max_preemptions - len(preempt)
        if left > 0 and (free_slots < 1 or free_blocks < need):
            victims = victims_of(key, preempt)
            while victims and len(chosen) < left and (free_slots + len(chosen) < 1 or free_blocks + gained < need):
                chosen.append(victims.pop())
                gained += returns_blocks(chosen[-1])
        if free_slots + len(chosen) < 1 or free_blocks + gained < need:
            break
        preempt += chosen
        free_slots += len(chosen) - 1
        free_blocks += gained - need
        admit.append(key)
    return preempt, admit
