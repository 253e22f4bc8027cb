"""The cache of segments against the cache of single blocks, which does what vLLM's pool does, one by one."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from agentserving_simulator.block_pool import BlockPool
from agentserving_simulator.virtual.context_cache import ContextCache, Holding, Segment
from hypothesis import given
from hypothesis import strategies as st

SIZE = 40


@dataclass
class Running:
    """One request, on both."""

    path: list[Segment]
    held: Holding
    blocks: list[int]


@dataclass
class Both:
    """The same requests on a pool of blocks and on a cache of segments; each computes its prompt as it starts."""

    pool: BlockPool = field(default_factory=lambda: BlockPool(SIZE))
    cache: ContextCache = field(default_factory=lambda: ContextCache(SIZE))
    names: dict[int, bytes] = field(default_factory=dict)

    def hashes(self, path: list[Segment]) -> list[bytes]:
        """One for each full block: whose segment it ends in, and where."""
        return [b"%d.%d" % (id(segment), at) for segment in path for at in range(segment.first, segment.last)]

    def start(self, path: list[Segment]) -> Running | None:
        tokens = path[-1].end
        hashes = self.hashes(path)
        most = (tokens - 1) // 16
        found = self.pool.lookup(hashes[:most])
        assert self.cache.find(path, tokens - 1) == (len(found), 0)
        need = -(-tokens // 16) - len(found)
        assert self.cache.free == self.pool.free
        idle = self.pool.cost(found)
        assert self.cache.idle(path, len(found)) >= idle
        if need + self.cache.idle(path, len(found)) > self.pool.free:
            return None
        self.pool.share(found)
        blocks = found + self.pool.take(need)
        for at, name in enumerate(hashes[len(found) :], len(found)):
            self.pool.remember(blocks[at], name)
        held = self.cache.hold(path, len(found))
        assert self.cache.grow(held, tokens)
        self.cache.settle(held, tokens)
        return Running(path, held, blocks)

    def end(self, running: Running) -> None:
        self.pool.give(running.blocks)
        self.cache.release(running.held, running.path[-1].end)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("new"), st.integers(0, 30), st.integers(1, 10).map(lambda blocks: 16 * blocks)),
            st.tuples(st.just("end"), st.integers(0, 30), st.just(0)),
        ),
        max_size=60,
    )
)
def test_segments_find_what_blocks_find(events: list[tuple[str, int, int]]) -> None:
    # Prompts end with full blocks here: vLLM computes the last one again, each time into a block of its own, and keeps
    # every copy; of segments there is one. So a path is never asked for twice, only gone on from.
    both, paths, running = Both(), [[]], []
    for kind, which, tokens in events:
        if kind == "end" and running:
            both.end(running.pop(which % len(running)))
        elif kind == "new":
            base = paths[which % len(paths)]
            start = base[-1].end if base else 0
            path = [*base, Segment(start, start + tokens)]
            made = both.start(path)
            if made is not None:
                running.append(made)
                paths.append(path)
    for each in running:
        both.end(each)
    assert both.cache.free == both.pool.free == SIZE


def run(cache: ContextCache, path: list[Segment]) -> int:
    """A request from start to end, alone; the blocks it found on the GPU."""
    found, _ = cache.find(path, path[-1].end - 1)
    held = cache.hold(path, found)
    assert cache.grow(held, path[-1].end)
    cache.release(held, path[-1].end)
    return found


def test_what_the_gpu_lost_is_found_at_the_host_while_there_is_room() -> None:
    cache = ContextCache(10, host_blocks=20)
    first, second, third = ([Segment(0, 16 * 8)] for _ in range(3))
    run(cache, first)
    run(cache, second)
    assert cache.find(first, 128) == (2, 6)
    run(cache, third)
    assert cache.find(first, 128) == (0, 0), "20 blocks hold the two newest contexts"
    assert cache.find(second, 128) == (2, 6)


def test_two_that_compute_the_same_side_by_side_hold_it_twice() -> None:
    cache = ContextCache(40)
    shared = [Segment(0, 160)]
    one = cache.hold(shared, 0)
    other = cache.hold(shared, 0)
    for held in (one, other):
        cache.grow(held, 160)
    for held in (one, other):
        cache.settle(held, 160)
    assert cache.used == 20
    cache.release(other, 160)
    assert cache.used == 10
    cache.release(one, 160)
    assert cache.used == 0
    assert cache.find(shared, 160) == (10, 0)


def test_without_reuse_nothing_is_found() -> None:
    cache = ContextCache(40, reuse=False)
    path = [Segment(0, 160)]
    assert run(cache, path) == run(cache, path) == 0
    assert cache.used == 0


def test_growing_beyond_the_pool_is_refused_and_takes_nothing() -> None:
    cache = ContextCache(4)
    held = cache.hold([Segment(0, 1000)], 0)
    assert cache.grow(held, 64)
    assert not cache.grow(held, 65)
    assert (cache.used, held.blocks) == (4, 4)


@pytest.mark.parametrize("most", [0, 15, 16, 17, 1000])
def test_only_whole_blocks_of_what_is_asked_are_found(most: int) -> None:
    cache = ContextCache(40)
    path = [Segment(0, 100)]
    run(cache, path)
    assert cache.find(path, most) == (min(most // 16, 6), 0)
