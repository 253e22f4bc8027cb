"""Generates programs like the paper's workloads (its table of means; the sigmas and everything unpublished are ours).

Every draw is a function of a `random.Random`. A seed gives the same programs at every arrival rate; only their arrivals
are closer together.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence

from agentserving.contract.ids import ProgramId

from agentserving_replay.traces.trace import Call, Program

# Not from the paper: the system prompt (instructions, tools) of each kind of program.
SYSTEM_TOKENS = {"sharegpt": 32, "bfcl": 512, "lats": 512, "map-reduce": 128}
# A tool of BFCL is a function call: a second on average, rarely ten.
TOOL_MU, TOOL_SIGMA = -0.5, 1.0


def _tokens(rng: random.Random, mu: float, sigma: float, most: int) -> int:
    tokens = round(math.exp(rng.normalvariate(mu, sigma)))
    return most if tokens > most else tokens or 1


class _Chain:
    """Sequential calls, each with the context so far and some new tokens as its prompt."""

    def __init__(self, system_tokens: int) -> None:
        self.calls: list[Call] = []
        self._context = system_tokens

    def add(self, new_tokens: int, output_tokens: int, gap_s: float = 0.0) -> None:
        at = len(self.calls)
        shared = self._context
        self.calls.append(
            Call(
                prompt_tokens=shared + new_tokens,
                output_tokens=output_tokens,
                parents=(at - 1,) if at else (),
                gap_s=gap_s,
                extends=at - 1,
                shared_tokens=shared,
            )
        )
        self._context = shared + new_tokens + output_tokens


def sharegpt(rng: random.Random) -> list[Call]:
    """A conversation: 6.7 calls on average, at most 80, long-tailed; 256 new and 277 generated tokens per call."""
    chain = _Chain(SYSTEM_TOKENS["sharegpt"])
    for _ in range(max(1, min(80, round(rng.lognormvariate(1.153, 1.22))))):
        chain.add(_tokens(rng, 4.375, 1.6, 4096), _tokens(rng, 5.152, 1.0, 2048))
    return chain.calls


def bfcl(rng: random.Random) -> list[Call]:
    """A ReAct agent with function calls: 10.7 calls, light-tailed; 735 new, 34 generated tokens; tools in between."""
    if rng.random() < 0.95:
        count = max(1, min(37, round(rng.gauss(9.95, 3.1))))
    else:
        count = min(70, 12 + round(rng.expovariate(1 / 14)))
    chain = _Chain(SYSTEM_TOKENS["bfcl"])
    for index in range(count):
        gap = rng.lognormvariate(TOOL_MU, TOOL_SIGMA) if index else 0.0
        chain.add(_tokens(rng, 6.477, 0.5, 8192), _tokens(rng, 3.353, 0.6, 512), gap)
    return chain.calls


# LATS on HotpotQA: at most 30 iterations of 5 samples, a tree of depth 7, rollouts of at most 4 levels; most questions
# are solved early. Continuing a rollout with even chance gives the published numbers of calls.
_ITERATIONS, _WIDTH, _DEPTH, _ROLLOUT = 30, 5, 7, 4
_SOLVABLE, _CONTINUES = 0.85, 0.52


class _Tree:
    """A search tree: nodes are (call, context tokens, depth)."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.calls: list[Call] = []
        # Calls that must have ended before the next iteration.
        self.barrier: tuple[int, ...] = ()
        system = SYSTEM_TOKENS["lats"]
        self.leaves: list[tuple[int, int, int]] = [(-1, system, 0)]

    def _call(self, parents: tuple[int, ...], extends: int, shared: int) -> tuple[int, int]:
        new, output = _tokens(self.rng, 6.047, 0.45, 3072), _tokens(self.rng, 4.136, 0.55, 512)
        self.calls.append(
            Call(
                prompt_tokens=shared + new,
                output_tokens=output,
                parents=parents,
                extends=extends,
                shared_tokens=shared,
                thread=f"t{len(self.calls) % _WIDTH}",
            )
        )
        return len(self.calls) - 1, shared + new + output

    def expand(self, node: tuple[int, int, int]) -> tuple[int, int, int]:
        """Samples children in parallel, then evaluates each; gives the child to continue from."""
        call, context, depth = node
        children = [(*self._call(self.barrier, call, context), depth + 1) for _ in range(_WIDTH)]
        sampled = tuple(child[0] for child in children)
        self.barrier = tuple(self._call(sampled, child[0], child[1])[0] for child in children)
        best = self.rng.randrange(_WIDTH)
        self.leaves += [c for i, c in enumerate(children) if i != best and c[2] < _DEPTH]
        return children[best]


def lats(rng: random.Random) -> list[Call]:
    """Language agent tree search: about 160 calls on average, half of the programs below 60; 467 new, 73 generated."""
    tree = _Tree(rng)
    ends = rng.uniform(0.05, 0.6) if rng.random() < _SOLVABLE else 0.0
    for _ in range(_ITERATIONS):
        if not tree.leaves:
            break
        # The search rule prefers the least explored part of the tree: the highest leaf, the first among equals.
        node = tree.leaves.pop(min(range(len(tree.leaves)), key=lambda leaf: tree.leaves[leaf][2]))
        node = tree.expand(node)
        for _ in range(_ROLLOUT - 1):
            if node[2] >= _DEPTH or rng.random() > _CONTINUES:
                break
            node = tree.expand(node)
        if node[2] < _DEPTH:
            tree.leaves.append(node)
        if rng.random() < ends:
            break
    return tree.calls


def map_reduce(rng: random.Random) -> list[Call]:
    """Parts of a long document read in parallel and then combined: 4 to 32 maps, one reduce."""
    system = SYSTEM_TOKENS["map-reduce"]
    maps = [
        Call(
            prompt_tokens=system + _tokens(rng, 7.2, 0.5, 8192),
            output_tokens=_tokens(rng, 4.6, 0.5, 512),
            shared_tokens=system,
            thread=f"m{i}",
        )
        for i in range(rng.randint(4, 32))
    ]
    summaries = sum(call.output_tokens for call in maps)
    reduce = Call(
        prompt_tokens=system + summaries + 64,
        output_tokens=_tokens(rng, 5.5, 0.5, 1024),
        parents=tuple(range(len(maps))),
        shared_tokens=system,
    )
    return [*maps, reduce]


SHAPES: dict[str, Callable[[random.Random], list[Call]]] = {
    "sharegpt": sharegpt,
    "bfcl": bfcl,
    "lats": lats,
    "map-reduce": map_reduce,
}
# Shapes of each workload, equally likely; Mixed combines the paper's three.
WORKLOADS: dict[str, Sequence[str]] = {
    **{name: (name,) for name in SHAPES},
    "mixed": ("sharegpt", "bfcl", "lats"),
}


def poisson(rng: random.Random, rate_per_s: float) -> Iterator[float]:
    """Arrival times, seconds."""
    now = 0.0
    while True:
        now -= math.log(1 - rng.random()) / rate_per_s
        yield now


def generate(
    workload: str, seed: int, rate_per_s: float, count: int, arrive: Callable[..., Iterator[float]] = poisson
) -> list[Program]:
    """`count` programs, whose arrival times (seconds) `arrive(rng, rate_per_s)` yields.

    ValueError for an unknown workload; it names the known ones.
    """
    if workload not in WORKLOADS:
        raise ValueError(f"no workload {workload!r}; known are {', '.join(WORKLOADS)}")
    names = WORKLOADS[workload]
    arrivals = arrive(random.Random(f"{seed}-arrivals"), rate_per_s)
    programs = []
    for index, arrival_s in zip(range(count), arrivals, strict=False):
        rng = random.Random(f"{workload}-{seed}-{index}")
        name = names[rng.randrange(len(names))]
        programs.append(Program(ProgramId(f"{name}-{index}"), name, arrival_s, tuple(SHAPES[name](rng))))
    return programs
