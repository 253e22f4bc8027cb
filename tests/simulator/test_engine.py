"""The simulated engine steps as vLLM does, and runs the whole policy: pauses, tool waits, retention, reports."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from agentserving.contract.channel import (
    Cancel,
    EngineReport,
    FromEngine,
    Load,
    SetAccounts,
    SetPaused,
    SetPolicy,
    ToEngine,
    ToolWait,
)
from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import PROGRAM_PLAS, to_dict
from agentserving.contract.signatures import signing_key
from agentserving.contract.ticket import IssuerKeys, Ticket, sign
from agentserving_engine.calls import CallBook, TicketCheck
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.engine import Limits, SimulatedEngine
from agentserving_simulator.requests import Finished, SimRequest
from agentserving_simulator.tokens import word
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = signing_key(b"0123456789abcdef")
CHECK = TicketCheck(engine_id="e", keys=lambda: IssuerKeys([KEY.public_key()]))
TENANT = "default"


class RecordedChannel:
    """What a sidecar would send and receive."""

    def __init__(self) -> None:
        self.inbox: deque[ToEngine] = deque()
        self.sent: list[FromEngine] = []

    def post(self, message: FromEngine) -> None:
        self.sent.append(message)

    def set_load(self, load: Load, policy_version: int) -> None:
        self.load = load

    def step_ended(self) -> None:
        pass

    def ensure_running(self) -> None:
        pass


def drive(engine: SimulatedEngine, now: int = 0, bound: int = 20_000) -> int:
    """Steps until nothing is left; returns the time, microseconds."""
    for _ in range(bound):
        batch, length = engine.begin_step(now)
        if not batch:
            assert not engine.requests, "requests are left and nothing runs"
            return now
        now += length
        engine.end_step(batch, now)
    raise AssertionError("the engine does not come to an end")


def step(engine: SimulatedEngine, now: int) -> tuple[list[str], int]:
    """One step; returns its requests and the time at its end. A millisecond passes if nothing runs."""
    batch, length = engine.begin_step(now)
    if batch:
        engine.end_step(batch, now + length)
    return batch, now + (length or 1000)


def engine_with(*requests: SimRequest, limits: Limits) -> SimulatedEngine:
    engine = SimulatedEngine(CallBook(CHECK), limits, CostModel())
    for request in requests:
        engine.add(request, None, 0, 0.0)
    return engine


def request(name: str, prompt: int, tokens: int) -> SimRequest:
    """A prompt of its own: no two requests share a block."""
    return SimRequest(name, [f"{name}.{index}" for index in range(prompt)], tokens)


def ticket(program: str, number: int = 0, account_us: int = 0, tenant: str = TENANT) -> str:
    return sign(
        Ticket(
            call_id=f"{program}.{tenant}.{number}", attempt=1, program_id=program, root_program_id=program,
            tenant=tenant, thread_id="", engine_id="e", attained_service_us=account_us, wait_us=0, policy_version=1,
            epoch=1, expires_unix_s=10, program_arrival_us=42,
        ),
        KEY,
    )  # fmt: skip


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
    engine = engine_with(*requests, limits=limits)
    drive(engine)
    for each in requests:
        assert outputs(each) == [*(word(0, index) for index in range(each.max_tokens)), Finished("length")]
    assert engine.free_blocks() == blocks


def test_a_small_pool_preempts_and_costs_time() -> None:
    def run(blocks: int) -> tuple[int, Load]:
        requests = [request(f"r{i}", 160, 160) for i in range(4)]
        engine = engine_with(*requests, limits=Limits(max_num_seqs=4, num_blocks=blocks))
        return drive(engine), engine.load

    slow, pressed = run(45)
    fast, free = run(1000)
    assert pressed.preemptions_reactive > 0 == free.preemptions_reactive
    assert slow > fast


def test_a_cancelled_request_ends_and_gives_its_blocks_back() -> None:
    cancelled = request("r", 100, 100)
    engine = engine_with(cancelled, limits=Limits(num_blocks=50))
    _, now = step(engine, 0)
    engine.cancel("r", now)
    engine.cancel("r", now)
    assert outputs(cancelled)[-1] == Finished("abort")
    assert engine.free_blocks() == 50
    assert engine.begin_step(now) == ([], 0)


def test_a_next_call_computes_only_what_is_new() -> None:
    first = request("r", 160, 32)
    engine = engine_with(first, limits=Limits(num_blocks=200))
    drive(engine)
    # The last token of an answer has no KV: no step has computed with it yet.
    second = SimRequest("s", [*first.tokens, *(f"new.{index}" for index in range(50))], 4)
    engine.add(second, None, 0, 0.0)
    drive(engine)
    assert second.cached_tokens == (160 + 32 - 1) // 16 * 16
    assert engine.load.cached_tokens == second.cached_tokens


def test_a_whole_prompt_in_the_cache_still_computes_its_last_block() -> None:
    first, again = request("r", 160, 1), request("r", 160, 1)
    again.request_id = "again"
    engine = engine_with(first, limits=Limits(num_blocks=200))
    drive(engine)
    engine.add(again, None, 0, 0.0)
    drive(engine)
    assert again.cached_tokens == 144
    assert len(outputs(again)) == 2


def test_a_preempted_call_finds_its_blocks_unless_another_needed_them() -> None:
    def recomputed(blocks: int) -> int:
        """Tokens that the call recomputes after another of 320 tokens ran in its place."""
        victim, other = request("victim", 320, 50), request("other", 320, 1)
        engine = SimulatedEngine(CallBook(CHECK), Limits(max_num_seqs=1, num_blocks=blocks), CostModel())
        engine.add(victim, ticket("victim"), 0, 0.0)
        _, now = step(engine, 0)
        engine.add(other, None, now, 0.0)
        engine.session.execute(SetPaused([(TENANT, "victim")]), now)
        batch, now = step(engine, now)
        assert batch == ["other"]
        engine.session.execute(SetPaused([]), now)
        engine.begin_step(now)
        return victim.scheduled

    assert recomputed(blocks=100) == 1
    # 20 blocks for the other: the two oldest free ones, then the tail of the victim, whose first two blocks stay.
    assert recomputed(blocks=22) == 321 - 2 * 16


def test_choices_of_one_prompt_share_its_blocks() -> None:
    pair = [request("r", 160, 8), request("r", 160, 8)]
    pair[1].request_id = "other"
    engine = engine_with(pair[0], limits=Limits(num_blocks=200))
    _, now = step(engine, 0)
    engine.add(pair[1], None, now, 0.0)
    engine.begin_step(now)
    assert pair[1].cached_tokens == 144
    assert 200 - engine.free_blocks() == 11 + 1


# -- the session -------------------------------------------------------------------------------------------------


def test_the_paused_programs_are_a_whole_set_and_all_others_resume() -> None:
    engine = engine_with(limits=Limits())
    for program in ("a", "b"):
        engine.add(request(program, 10, 50), ticket(program), 0, 0.0)
    for paused, running in ((["a", "b"], []), (["b"], ["a"]), (["a"], ["b"]), ([], ["a", "b"])):
        engine.session.execute(SetPaused([(TENANT, program) for program in paused]), 0)
        assert sorted(engine.begin_step(1)[0]) == running


def test_a_pause_and_an_account_are_of_one_tenants_program() -> None:
    engine = engine_with(limits=Limits())
    for tenant in ("acme", "globex"):
        engine.add(request(tenant, 10, 50), ticket("triage", tenant=tenant), 0, 0.0)
    engine.session.execute(SetPaused([("acme", "triage")]), 0)
    assert engine.begin_step(1)[0] == ["globex"]
    engine.session.execute(SetAccounts([("acme", "triage", 10**8, 0)]), 2)
    book = engine.session.book
    assert book.accounts.of(ProgramKey(Tenant("acme"), ProgramId("triage"))).attained_us == 10**8
    assert book.accounts.of(ProgramKey(Tenant("globex"), ProgramId("triage"))).attained_us == 0


# Beyond what program `a` attains in these tests.
WORSE_US = 10**9
# 30 blocks: a context of 20 and one of 15 do not fit together.
SMALL = Limits(max_num_seqs=4, num_blocks=30)
RETAINING = replace(PROGRAM_PLAS, retention_milli=50_000)


def after_a_call_of_a(milli: int = RETAINING.retention_milli) -> tuple[SimulatedEngine, SimRequest, int]:
    """An engine in which program `a` has had a call of 320 tokens, that call, and the time."""
    engine = engine_with(limits=SMALL)
    engine.session.execute(SetPolicy(1, to_dict(replace(RETAINING, retention_milli=milli))), 0)
    first = request("a", 316, 4)
    engine.add(first, ticket("a", account_us=300_000), 0, 0.0)
    return engine, first, drive(engine)


def test_a_worse_program_waits_while_kv_is_retained_and_the_program_finds_it() -> None:
    engine, first, now = after_a_call_of_a()
    engine.add(request("b", 240, 4), ticket("b", account_us=WORSE_US), now, 0.0)
    for _ in range(8):
        batch, now = step(engine, now)
        assert batch == [], "it took the blocks that are retained"
    assert engine.load.kept_blocks == 19
    assert engine.load.behind_kept == 1
    again = SimRequest("a2", [*first.tokens, *(f"new.{index}" for index in range(8))], 4)
    engine.add(again, ticket("a", 1, account_us=300_000), now, 0.0)
    batch, now = step(engine, now)
    assert batch == ["a2"]
    assert again.cached_tokens >= 300


def test_kv_is_retained_for_a_time_only() -> None:
    engine, _, now = after_a_call_of_a()
    began = now
    engine.add(request("b", 240, 4), ticket("b", account_us=WORSE_US), now, 0.0)
    batch: list[str] = []
    while not batch:
        batch, now = step(engine, now)
        assert now - began < 60_000_000, "the engine waits for ever"
    assert now - began > 100_000


def test_nothing_is_retained_by_a_policy_without_retention() -> None:
    engine, _, now = after_a_call_of_a(milli=0)
    engine.add(request("b", 240, 4), ticket("b", account_us=WORSE_US), now, 0.0)
    assert step(engine, now)[0] == ["b"]


def tool_wait(*, waiting: bool = True, expected_us: int = 0) -> ToolWait:
    return ToolWait(
        tenant=TENANT, root_program_id="a", program_id="a", thread_id="", waiting=waiting, expected_us=expected_us
    )


def test_a_long_tool_wait_gives_the_blocks_to_a_worse_program_and_a_short_one_does_not() -> None:
    for expected_us, starts in ((0, False), (1_000, False), (600_000_000, True)):
        engine, _, now = after_a_call_of_a()
        engine.session.execute(tool_wait(expected_us=expected_us), now)
        engine.add(request("b", 240, 4), ticket("b", account_us=WORSE_US), now, 0.0)
        assert (step(engine, now)[0] == ["b"]) == starts, expected_us


def test_a_program_that_resumes_starts_in_the_next_step_although_a_worse_one_was_deferred() -> None:
    engine, _, now = after_a_call_of_a()
    engine.session.execute(SetPaused([(TENANT, "c")]), now)
    for name, account_us in (("b", WORSE_US), ("c", 0)):
        engine.add(request(name, 240, 4), ticket(name, account_us=account_us), now, 0.0)
    batch, now = step(engine, now)
    assert batch == []
    engine.session.execute(SetPaused([]), now)
    assert step(engine, now)[0] == ["c"]


def test_reports_carry_records_loads_and_the_measured_cost_of_prefill() -> None:
    engine = engine_with(limits=Limits())
    channel = engine.session.channel = RecordedChannel()
    engine.add(request("a", 320, 40), ticket("a"), 0, 0.0)
    engine.add(request("b", 320, 40), ticket("b"), 0, 0.0)
    now = 0
    for _ in range(10):
        _, now = step(engine, now)
    channel.inbox.append(Cancel([f"b.{TENANT}.0"]))
    drive(engine, now)
    reports = [message for message in channel.sent if isinstance(message, EngineReport)]
    ended = {call.call_id: call for report in reports for call in report.calls if call.outcome}
    assert {call_id: call.outcome for call_id, call in ended.items()} == {
        f"a.{TENANT}.0": "completed", f"b.{TENANT}.0": "cancelled"
    }  # fmt: skip
    assert (ended[f"a.{TENANT}.0"].prompt_tokens, ended[f"a.{TENANT}.0"].output_tokens) == (320, 40)
    assert 50 < reports[-1].load.prefill_us_per_token < 200
    assert (reports[-1].load.running, reports[-1].load.waiting) == (0, 0)


def test_a_step_that_ends_calls_costs_the_sidecar_one_message_also_when_the_engine_becomes_idle() -> None:
    engine = engine_with(limits=Limits())
    channel = engine.session.channel = RecordedChannel()
    for name in ("a", "b"):
        engine.add(request(name, 16, 1), ticket(name), 0, 0.0)
    now = drive(engine)
    engine.session.report(now, idle=True)
    (report,) = [message for message in channel.sent if isinstance(message, EngineReport)]
    assert {call.call_id: call.outcome for call in report.calls} == {
        f"{name}.{TENANT}.0": "completed" for name in ("a", "b")
    }
    assert report.load == channel.load
    assert (report.load.running, report.load.steps) == (0, 1)


def test_a_call_that_is_aborted_between_steps_is_reported_although_no_step_follows() -> None:
    engine = engine_with(limits=Limits())
    channel = engine.session.channel = RecordedChannel()
    engine.add(request("a", 16, 40), ticket("a"), 0, 0.0)
    _, now = step(engine, 0)
    channel.sent.clear()
    engine.session.execute(Cancel([f"a.{TENANT}.0"]), now)
    (report,) = [message for message in channel.sent if isinstance(message, EngineReport)]
    assert [(call.call_id, call.outcome) for call in report.calls] == [(f"a.{TENANT}.0", "cancelled")]


def test_a_cancel_that_overtakes_its_call_ends_it_when_it_arrives_though_its_tree_is_paused() -> None:
    engine = engine_with(limits=Limits())
    channel = engine.session.channel = RecordedChannel()
    engine.session.execute(SetPaused([(TENANT, "a")]), 0)
    engine.session.execute(Cancel([f"a.{TENANT}.0"]), 0)
    engine.add(request("a", 16, 40), ticket("a"), 1, 0.0)
    engine.add(request("b", 16, 1), ticket("b"), 1, 0.0)
    drive(engine, 1)
    reports = [message for message in channel.sent if isinstance(message, EngineReport)]
    ended = {call.call_id: call.outcome for each in reports for call in each.calls if call.outcome}
    assert ended == {f"a.{TENANT}.0": "cancelled", f"b.{TENANT}.0": "completed"}
    assert not engine.requests
