"""Programs drawn as the paper's workloads are (its table of means; the sigmas and what it does not publish are ours).

Every draw is a function of a `random.Random`, and programs of one seed are the same whatever the arrival rate: only
their arrivals are closer together.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence

from agentserving_replay.traces.trace import Call, Program

# No paper figure: what every program of one kind says first (instructions, tools).
SYSTEM_TOKENS = {"sharegpt": 32, "bfcl": 512, "lats": 512, "map-reduce": 128}
# A tool of BFCL is a function call: a second in the mean, seldom ten.
TOOL_MU, TOOL_SIGMA = -0.5, 1.0


def _tokens(dice: random.Random, mu: float, sigma: float, most: int) -> int:
    return max(1, min(most, round(dice.lognormvariate(mu, sigma))))


class _Chain:
    """Calls one after the other, each prompt the context so far and something new."""

    def __init__(self, system_tokens: int) -> None:
        self.calls: list[Call] = []
        self._context = system_tokens

    def add(self, new_tokens: int, output_tokens: int, gap_s: float = 0.0) -> None:
        at = len(self.calls)
        shared = self._context
        self.calls.append(Call(shared + new_tokens, output_tokens, (at - 1,) if at else (), gap_s, at - 1, shared))
        self._context = shared + new_tokens + output_tokens


def sharegpt(dice: random.Random) -> list[Call]:
    """A conversation: 6.7 calls in the mean, 80 at most, long-tailed; 256 new tokens, 277 generated."""
    chain = _Chain(SYSTEM_TOKENS["sharegpt"])
    for _ in range(max(1, min(80, round(dice.lognormvariate(1.153, 1.22))))):
        chain.add(_tokens(dice, 4.375, 1.6, 4096), _tokens(dice, 5.152, 1.0, 2048))
    return chain.calls


def bfcl(dice: random.Random) -> list[Call]:
    """A ReAct agent on function calls: 10.7 calls, light-tailed; 735 new tokens, 34 generated, a tool between."""
    if dice.random() < 0.95:
        count = max(1, min(37, round(dice.gauss(9.95, 3.1))))
    else:
        count = min(70, 12 + round(dice.expovariate(1 / 14)))
    chain = _Chain(SYSTEM_TOKENS["bfcl"])
    for index in range(count):
        gap = dice.lognormvariate(TOOL_MU, TOOL_SIGMA) if index else 0.0
        chain.add(_tokens(dice, 6.477, 0.5, 8192), _tokens(dice, 3.353, 0.6, 512), gap)
    return chain.calls


# LATS on HotpotQA: 30 iterations at most, 5 samples each, a tree 7 deep, rollouts of 4 levels at most; most questions
# are solved early. That a rollout goes on with even chance is what gives the known numbers of calls.
_ITERATIONS, _WIDTH, _DEPTH, _ROLLOUT = 30, 5, 7, 4
_SOLVABLE, _GOES_ON = 0.85, 0.52


class _Tree:
    """A search tree: nodes are (call, context tokens, depth)."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.calls: list[Call] = []
        # Who must have ended before the next iteration; and the root's context.
        self.barrier: tuple[int, ...] = ()
        system = SYSTEM_TOKENS["lats"]
        self.leaves: list[tuple[int, int, int]] = [(-1, system, 0)]

    def _call(self, parents: tuple[int, ...], extends: int, shared: int) -> tuple[int, int]:
        new, output = _tokens(self.dice, 6.047, 0.45, 3072), _tokens(self.dice, 4.136, 0.55, 512)
        self.calls.append(Call(shared + new, output, parents, 0.0, extends, shared, f"t{len(self.calls) % _WIDTH}"))
        return len(self.calls) - 1, shared + new + output

    def expand(self, node: tuple[int, int, int]) -> tuple[int, int, int]:
        """Samples in parallel, then an evaluation of each; gives a child to go on from."""
        call, context, depth = node
        children = [(*self._call(self.barrier, call, context), depth + 1) for _ in range(_WIDTH)]
        sampled = tuple(child[0] for child in children)
        self.barrier = tuple(self._call(sampled, child[0], child[1])[0] for child in children)
        best = self.dice.randrange(_WIDTH)
        self.leaves += [c for i, c in enumerate(children) if i != best and c[2] < _DEPTH]
        return children[best]


def lats(dice: random.Random) -> list[Call]:
    """Language agent tree search: about 160 calls in the mean, half of the programs below 60; 467 and 73 tokens."""
    tree = _Tree(dice)
    ends = dice.uniform(0.05, 0.6) if dice.random() < _SOLVABLE else 0.0
    for _ in range(_ITERATIONS):
        if not tree.leaves:
            break
        # The tree's search rule prefers what was tried less: the highest leaf, the first of equals.
        node = tree.leaves.pop(min(range(len(tree.leaves)), key=lambda leaf: tree.leaves[leaf][2]))
        node = tree.expand(node)
        for _ in range(_ROLLOUT - 1):
            if node[2] >= _DEPTH or dice.random() > _GOES_ON:
                break
            node = tree.expand(node)
        if node[2] < _DEPTH:
            tree.leaves.append(node)
        if dice.random() < ends:
            break
    return tree.calls


def map_reduce(dice: random.Random) -> list[Call]:
    """Parts of a long document read side by side, then put together: 4 to 32 maps, one reduce."""
    system = SYSTEM_TOKENS["map-reduce"]
    maps = [
        Call(system + _tokens(dice, 7.2, 0.5, 8192), _tokens(dice, 4.6, 0.5, 512), (), 0.0, -1, system, f"m{i}")
        for i in range(dice.randint(4, 32))
    ]
    read = sum(call.output_tokens for call in maps)
    reduce = Call(system + read + 64, _tokens(dice, 5.5, 0.5, 1024), tuple(range(len(maps))), 0.0, -1, system)
    return [*maps, reduce]


SHAPES: dict[str, Callable[[random.Random], list[Call]]] = {
    "sharegpt": sharegpt,
    "bfcl": bfcl,
    "lats": lats,
    "map-reduce": map_reduce,
}
# Shapes of each workload; Mixed is a third each of the paper's three.
WORKLOADS: dict[str, Sequence[str]] = {
    **{name: (name,) for name in SHAPES},
    "mixed": ("sharegpt", "bfcl", "lats"),
}


def poisson(dice: random.Random, rate_per_s: float) -> Iterator[float]:
    """Arrival times, seconds."""
    now = 0.0
    while True:
        now -= math.log(1 - dice.random()) / rate_per_s
        yield now


def generate(
    workload: str, seed: int, rate_per_s: float, count: int, arrive: Callable[..., Iterator[float]] = poisson
) -> list[Program]:
    """`count` programs, which come as `arrive(dice, rate_per_s)` says (seconds).

    ValueError names the workloads when there is none of this name.
    """
    if workload not in WORKLOADS:
        raise ValueError(f"no workload {workload!r}; there are {', '.join(WORKLOADS)}")
    names = WORKLOADS[workload]
    arrivals = arrive(random.Random(f"{seed}-arrivals"), rate_per_s)
    programs = []
    for index, arrival_s in zip(range(count), arrivals, strict=False):
        dice = random.Random(f"{workload}-{seed}-{index}")
        name = names[dice.randrange(len(names))]
        programs.append(Program(f"{name}-{index}", name, arrival_s, tuple(SHAPES[name](dice))))
    return programs
