"""The simulated engine steps as vLLM does: chunked prefill, a bounded pool, recompute after preemption."""

from __future__ import annotations

from agentserving.contract.channel import Load, SetHolds
from agentserving.contract.ticket import Ticket, sign
from agentserving_engine.call_book import CallBook
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.engine import Limits, SimulatedEngine
from agentserving_simulator.requests import Finished, SimRequest
from agentserving_simulator.tokens import word
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


def request(name: str, prompt: int, tokens: int) -> SimRequest:
    """A prompt of its own: no two requests share a block."""
    return SimRequest(name, [f"{name}.{index}" for index in range(prompt)], tokens)


def outputs(request: SimRequest) -> list[str | Finished]:
    return [request.outputs.get_nowait()[1] for _ in range(request.outputs.qsize())]


@given(
    shapes=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40)), min_size=1, max_size=12),
    seqs=st.integers(1, 8),
    blocks=st.integers(22, 60),
)
@settings(max_examples=60, deadline=None)
def test_every_request_gets_exactly_its_tokens_whatever_the_pool(
    shapes: list[tuple[int, int]], seqs: int, blocks: int
) -> None:
    requests = [request(f"r{i}", prompt, tokens) for i, (prompt, tokens) in enumerate(shapes)]
    limits = Limits(max_num_seqs=seqs, num_blocks=blocks, max_batched_tokens=64)
    engine = made(*requests, limits=limits)
    drive(engine)
    for each in requests:
        assert outputs(each) == [*(word(0, index) for index in range(each.max_tokens)), Finished("length")]
    assert engine.free_blocks == blocks


def test_a_small_pool_preempts_and_costs_time() -> None:
    def run(blocks: int) -> tuple[int, Load]:
        requests = [request(f"r{i}", 160, 160) for i in range(4)]
        engine = made(*requests, limits=Limits(max_num_seqs=4, num_blocks=blocks))
        return drive(engine), engine.load

    slow, pressed = run(45)
    fast, free = run(1000)
    assert pressed.preemptions_reactive > 0 == free.preemptions_reactive
    assert slow > fast


def test_an_aborted_request_ends_and_gives_its_blocks_back() -> None:
    aborted = request("r", 100, 100)
    engine = made(aborted, limits=Limits(num_blocks=50))
    batch, length = engine.begin_step(0)
    engine.end_step(batch, length, length)
    engine.abort("r", length)
    engine.abort("r", length)
    assert outputs(aborted)[-1] == Finished("abort")
    assert engine.free_blocks == 50
    assert engine.begin_step(length) == ([], 0)


def test_a_next_call_computes_only_what_is_new() -> None:
    first = request("r", 160, 32)
    engine = made(first, limits=Limits(num_blocks=200))
    drive(engine)
    # The last token of an answer has no KV: nobody has computed with it yet.
    second = SimRequest("s", [*first.tokens, *(f"new.{index}" for index in range(50))], 4)
    engine.add(second, None, 0, 0.0)
    drive(engine)
    assert second.cached_tokens == (160 + 32 - 1) // 16 * 16
    assert engine.load.cached_tokens == second.cached_tokens


def test_a_whole_prompt_in_the_cache_still_computes_its_last_block() -> None:
    first, again = request("r", 160, 1), request("r", 160, 1)
    again.request_id = "again"
    engine = made(first, limits=Limits(num_blocks=200))
    drive(engine)
    engine.add(again, None, 0, 0.0)
    drive(engine)
    assert again.cached_tokens == 144
    assert len(outputs(again)) == 2


def test_a_preempted_call_finds_its_blocks_unless_another_needed_them() -> None:
    def recomputed(blocks: int) -> int:
        """Tokens that the call computes again after a stranger of 320 tokens ran in its place."""
        victim, stranger = request("victim", 320, 50), request("stranger", 320, 1)
        engine = made(victim, limits=Limits(max_num_seqs=1, num_blocks=blocks))
        batch, length = engine.begin_step(0)
        engine.end_step(batch, length, length)
        engine._preempt("victim", length)
        engine.add(stranger, None, length, 0.0)
        engine._calls.pause("\x00victim", True, length)
        batch, step = engine.begin_step(length)
        assert batch == ["stranger"]
        engine.end_step(batch, step, length + step)
        engine._calls.pause("\x00victim", False, length)
        engine.begin_step(length + step)
        return victim.scheduled

    assert recomputed(blocks=100) == 1
    # 20 blocks for the stranger: the two oldest free ones, then the tail of the victim, whose first two blocks stay.
    assert recomputed(blocks=22) == 321 - 2 * 16


def test_choices_of_one_prompt_share_its_blocks() -> None:
    pair = [request("r", 160, 8), request("r", 160, 8)]
    pair[1].request_id = "other"
    engine = made(pair[0], limits=Limits(num_blocks=200))
    batch, length = engine.begin_step(0)
    engine.end_step(batch, length, length)
    engine.add(pair[1], None, length, 0.0)
    engine.begin_step(length)
    assert pair[1].cached_tokens == 144
    assert 200 - engine.free_blocks == 11 + 1


def test_holds_are_the_whole_set_and_what_is_not_in_it_is_let_go() -> None:
    engine = SimulatedEngine(CallBook("e", lambda: (b"0123456789abcdef",)), Limits(), CostModel())
    for program in ("a", "b"):
        ticket = Ticket(f"{program}.1.0", 1, program, program, "default", "", "e", 0, 0, 1, 1, 10)
        engine.add(request(program, 10, 50), sign(ticket, b"0123456789abcdef"), 0, 0.0)
    for held, running in ((["a", "b"], []), (["b"], ["a"]), (["a"], ["b"]), ([], ["a", "b"])):
        engine._execute(SetHolds(held), 0)
        assert sorted(engine.begin_step(1)[0]) == running
