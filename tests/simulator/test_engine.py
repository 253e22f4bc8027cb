"""The simulated engine steps as vLLM does: chunked prefill, a bounded pool, recompute after preemption."""

from __future__ import annotations

from agentserving.channel import Load
from agentserving_engine.call_book import CallBook
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.engine import Limits, SimulatedEngine
from agentserving_simulator.requests import Finished, SimRequest
from hypothesis import given, settings
from hypothesis import strategies as st


def drive(engine: SimulatedEngine, bound: int = 20_000) -> int:
    """Steps until nothing is left; gives the time, microseconds."""
    now = 0
    for _ in range(bound):
        batch, length = engine.begin_step(now)
        if not batch:
            assert not engine.requests, "requests are left and nothing runs"
            return now
        now += length
        engine.end_step(batch, length, now)
    raise AssertionError("the engine does not come to an end")


def made(*requests: SimRequest, limits: Limits) -> SimulatedEngine:
    engine = SimulatedEngine(CallBook("e", None), limits, CostModel())
    for request in requests:
        engine.add(request, None, 0, 0.0)
    return engine


def outputs(request: SimRequest) -> list[int | Finished]:
    return [request.outputs.get_nowait() for _ in range(request.outputs.qsize())]


@given(
    shapes=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40)), min_size=1, max_size=12),
    seqs=st.integers(1, 8),
    blocks=st.integers(22, 60),
)
@settings(max_examples=60, deadline=None)
def test_every_request_gets_exactly_its_tokens_whatever_the_pool(
    shapes: list[tuple[int, int]], seqs: int, blocks: int
) -> None:
    requests = [SimRequest(f"r{i}", prompt, tokens) for i, (prompt, tokens) in enumerate(shapes)]
    limits = Limits(max_num_seqs=seqs, num_blocks=blocks, max_batched_tokens=64)
    engine = made(*requests, limits=limits)
    drive(engine)
    for request in requests:
        assert outputs(request) == [*range(request.max_tokens), Finished("length")]
    assert engine.free_blocks == blocks


def test_a_small_pool_preempts_and_costs_time() -> None:
    def run(blocks: int) -> tuple[int, Load]:
        requests = [SimRequest(f"r{i}", 160, 160) for i in range(4)]
        engine = made(*requests, limits=Limits(max_num_seqs=4, num_blocks=blocks))
        return drive(engine), engine.load

    slow, pressed = run(45)
    fast, free = run(1000)
    assert pressed.preemptions_reactive > 0 == free.preemptions_reactive
    assert slow > fast


def test_an_aborted_request_ends_and_gives_its_blocks_back() -> None:
    request = SimRequest("r", 100, 100)
    engine = made(request, limits=Limits(num_blocks=50))
    batch, length = engine.begin_step(0)
    engine.end_step(batch, length, length)
    engine.abort("r", length)
    engine.abort("r", length)
    assert outputs(request)[-1] == Finished("abort")
    assert engine.free_blocks == 50
    assert engine.begin_step(length) == ([], 0)
