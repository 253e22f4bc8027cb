"""Selects which running calls to preempt for which waiting ones: the batch of Algorithm 1. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from agentserving.contract.ids import Tenant

# Inadmissible calls passed over in one decision: its cost must not grow with the queue.
MAX_PASSED_OVER = 64


def select(
    waiting: Iterable[str],
    victims_of: Callable[[int], list[str]],
    rank_of: Callable[[str], int],
    *,
    free_slots: int,
    free_blocks: int,
    max_preemptions: int,
    need_blocks: Callable[[str], int],
    returns_blocks: Callable[[str], int],
    admissible: Callable[[str], bool],
) -> tuple[list[str], list[str]]:
    """(running calls to preempt, waiting calls to admit), each in the order of the decision.

    `rank_of` is the rank of a call's level. `waiting` comes best first; `victims_of(rank)` returns the running calls
    of worse ranks that may be preempted, worst last. It is called once, for the first call that finds no room: later
    calls are no better. Stops at the first waiting call that does not fit (paper, Algorithm 1, line 'batch').
    """
    victims: list[str] | None = None
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
        if free_slots < 1 or free_blocks < need:
            rank = rank_of(key)
            if victims is None:
                victims = victims_of(rank) if max_preemptions > 0 else []
            left = max_preemptions - len(preempt)
            while (
                victims
                and len(chosen) < left
                and (free_slots + len(chosen) < 1 or free_blocks + gained < need)
                and rank_of(victims[-1]) > rank
            ):
                chosen.append(victims.pop())
                gained += returns_blocks(chosen[-1])
        if free_slots + len(chosen) < 1 or free_blocks + gained < need:
            break
        preempt += chosen
        free_slots += len(chosen) - 1
        free_blocks += gained - need
        admit.append(key)
    return preempt, admit


def select_between_tenants(
    waiting: Iterable[str],
    victims_of: Callable[[str, bool], list[str]],
    tenant_of: Callable[[str], Tenant],
    *,
    free_slots: int,
    free_blocks: int,
    max_preemptions: int,
    need_blocks: Callable[[str], int],
    returns_blocks: Callable[[str], int],
    admissible: Callable[[str], bool],
) -> tuple[list[str], list[str]]:
    """The same for several tenants, whose calls come in the order in which tenants are to be served.

    `victims_of(key, others)` returns the running calls that may be preempted for a waiting one, worst last; those of
    `others` tenants only if asked. Stops at the first call that does not fit as well: if tenants behind it could go on
    exchanging their own calls, one would exchange them for ever and compute nothing but prompts.
    """
    preempt: list[str] = []
    admit: list[str] = []
    crossed = False
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
            # Accounts do not know yet of a preemption that was just chosen: one exchange between tenants a decision.
            victims = [victim for victim in victims_of(key, not crossed) if victim not in preempt]
            while victims and len(chosen) < left and (free_slots + len(chosen) < 1 or free_blocks + gained < need):
                chosen.append(victims.pop())
                gained += returns_blocks(chosen[-1])
        if free_slots + len(chosen) < 1 or free_blocks + gained < need:
            break
        crossed |= any(tenant_of(victim) != tenant_of(key) for victim in chosen)
        preempt += chosen
        free_slots += len(chosen) - 1
        free_blocks += gained - need
        admit.append(key)
    return preempt, admit
