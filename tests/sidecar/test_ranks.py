"""The sidecar of a data-parallel engine: several schedulers, one engine."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec
from agentserving.contract.channel import (
    EngineHello,
    EngineReport,
    Load,
    PolicyResult,
    SetPaused,
    ToEngine,
    socket_name,
)
from agentserving_engine.calls import Outbox
from agentserving_engine.channel_server import ChannelServer
from agentserving_sidecar.engine_link import EngineLinks
from agentserving_sidecar.engine_state import EngineState
from agentserving_sidecar.health import FrontState, State
from agentserving_sidecar.rank_state import joined_load
from sidecar.ports import hello, record, report, running_sidecar, until

S = 1_000_000


def of(boot_id: str, ranks: int = 2) -> EngineHello:
    return msgspec.structs.replace(hello(boot_id), data_parallel_size=ranks)


def engine(*ranks: int, boot_id: str = "b1", now_us: int = 0) -> EngineState:
    """An engine of two ranks, of which these have connected, with a healthy front."""
    made = EngineState(5 * S)
    for rank in ranks:
        made.connected(of(boot_id), 0, now_us, rank)
        made.heard(Load(total_blocks=1000), now_us, rank)
    made.front_answered(FrontState.HEALTHY, "")
    made.evaluate(now_us)
    return made


def test_an_engine_is_as_large_as_all_of_its_ranks() -> None:
    found = engine(0, 1).hello
    assert found is not None
    assert (found.max_num_seqs, found.num_blocks, found.max_model_len, found.boot_id) == (16, 2000, 8192, "b1")


def test_an_engine_serves_once_all_of_its_ranks_have_connected() -> None:
    partial = engine(0)
    assert partial.health.state is State.LOADING
    assert "rank 1" in partial.health.reason
    assert not partial.is_connected
    assert engine(1).health.state is State.LOADING
    assert engine(0, 1).health.is_serving
    assert engine(1, 0).health.is_serving


def test_the_worst_rank_decides() -> None:
    made = engine(0, 1)
    made.disconnected(0, rank=1)
    made.absent(rank=1)
    made.evaluate(S)
    assert made.health.state is State.DOWN
    assert made.health.reason.startswith("rank 1: the engine process has ended")
    stuck = engine(0, 1)
    stuck.heard(Load(running=1, last_step_age_us=100 * S), S, 0)
    stuck.heard(Load(), S, 1)
    stuck.evaluate(S)
    assert stuck.health.state is State.STUCK
    assert stuck.health.reason.startswith("rank 0: calls are running")


def test_a_rank_without_calls_is_not_what_makes_an_engine_look_stuck() -> None:
    idle, busy = Load(last_step_age_us=500 * S), Load(running=2, last_step_age_us=7)
    assert joined_load([idle, busy]).last_step_age_us == 7
    made = engine(0, 1)
    made.heard(idle, S, 0)
    made.heard(busy, S, 1)
    made.evaluate(S)
    assert made.health.is_serving


def test_loads_are_summed_and_costs_are_the_largest() -> None:
    one = Load(running=1, waiting=2, free_blocks=3, total_blocks=4, steps=5, prefill_us_per_token=6.0)
    other = Load(running=10, waiting=20, free_blocks=30, total_blocks=40, steps=50, prefill_us_per_token=2.0)
    both = Load(running=11, waiting=22, free_blocks=33, total_blocks=44, steps=55, prefill_us_per_token=6.0)
    assert joined_load([one, other]) == both
    assert joined_load([one]) is one


def test_a_rank_of_the_boot_before_does_not_count() -> None:
    made = engine(0, 1)
    assert made.connected(of("b2"), 0, S, 0)
    made.evaluate(S)
    assert made.health.state is State.LOADING
    assert made.hello is not None
    assert (made.boot_id, made.hello.max_num_seqs, made.load) == ("b2", 8, None)
    assert made.boot_of(1) == "b1"
    assert not made.connected(of("b2"), 0, S, 1)
    assert made.is_connected


def test_an_engine_that_starts_again_with_one_rank_waits_for_no_other() -> None:
    made = engine(0, 1)
    made.disconnected(S, 1)
    made.absent(1)
    made.connected(of("b2", ranks=1), 0, S, 0)
    made.front_answered(FrontState.HEALTHY, "")
    made.evaluate(S)
    assert made.health.is_serving


def test_an_engine_follows_a_policy_once_all_of_its_ranks_do() -> None:
    made = engine(0, 1)
    assert made.policy_answered(PolicyResult(7, ""), 1) is None
    assert made.policy_answered(PolicyResult(8, ""), 0) is None
    assert made.policy_answered(PolicyResult(8, ""), 1) == PolicyResult(8, "")
    # One that refuses it is enough to know that the engine does not follow.
    assert made.policy_answered(PolicyResult(9, "no"), 0) == PolicyResult(9, "no")
    # What the boot before has said does not count.
    made.connected(of("b2"), 0, S, 0)
    assert made.policy_answered(PolicyResult(8, ""), 0) is None
    made.connected(of("b2"), 0, S, 1)
    assert made.policy_answered(PolicyResult(8, ""), 1) == PolicyResult(8, "")


async def test_a_call_is_recorded_under_its_boot_whichever_rank_reports_it(tmp_path: Path) -> None:
    async with running_sidecar(tmp_path) as rig:
        rig.sidecar.engine_hello(of("b2"), 0, 0)
        rig.sidecar.engine_hello(of("b2"), 0, 1)
        rig.sidecar.engine_report(report(record("p.1.0"), load=Load(running=1)), 0)
        rig.sidecar.engine_report(report(record("q.1.0"), load=Load(running=2)), 1)
        await until(lambda: len(rig.leader.recorded) == 2)
        assert {boot for sent in rig.leader.reports for boot, _ in sent.calls} == {"b2"}
        rig.sidecar.engine_report(report(load=Load(running=2, waiting=3)), 1)
        last = rig.leader.reports[-1].load
        assert last is not None
        assert (last.running, last.waiting) == (3, 3)
        # The second rank's arrival is not another boot: nothing has failed.
        assert [sent.boot_id for sent in rig.leader.reports if sent.engine_down] == ["b1"]


class Heard:
    """The owner of the links."""

    def __init__(self) -> None:
        self.hellos: list[int] = []
        self.reports: list[tuple[int, EngineReport]] = []

    def engine_hello(self, hello: EngineHello, pid: int, rank: int) -> None:
        assert hello.data_parallel_size == 3
        assert pid
        self.hellos.append(rank)

    def engine_report(self, report: EngineReport, rank: int) -> None:
        self.reports.append((rank, report))

    def engine_policy(self, result: PolicyResult, rank: int) -> None:
        """Not sent here."""

    def engine_disconnected(self, rank: int) -> None:
        """Until the ranks are there."""

    def engine_absent(self, rank: int) -> None:
        """As before."""


async def test_links_to_all_ranks_are_made_once_rank_0_has_said_how_many_there_are(tmp_path: Path) -> None:
    heard = Heard()
    links = EngineLinks(tmp_path, heard)
    message: ToEngine = SetPaused([("t", "p")])
    running = asyncio.create_task(links.run())
    with contextlib.ExitStack() as stack:
        ranks = []
        for rank in (2, 1, 0):
            ranks.append(ChannelServer(tmp_path / socket_name(rank), of("b1", ranks=3), Outbox()))
            stack.callback(ranks[-1].close)
        try:
            await until(lambda: sorted(heard.hellos) == [0, 1, 2])
            assert links.send(message)
            await until(lambda: all(list(rank.inbox) == [message] for rank in ranks))
            ranks[0].post(EngineReport(Load(running=9), [], 0))
            await until(lambda: any(rank == 2 and sent.load.running == 9 for rank, sent in heard.reports))
            links.reconnect()
            await until(lambda: sorted(heard.hellos) == [0, 0, 1, 1, 2, 2])
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
