"""The demo: one load of agent programs under FCFS and then under the default policy, on the same engines."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from agentserving import AgentServingError, AsyncClient
from agentserving.client.values import Overview, Program
from agentserving.contract.policy import DEFAULT
from agentserving.transport.connection import Settings
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from agentserving_cli.figures import draw
from agentserving_cli.load import ProgramResult, run_mixed_load
from agentserving_cli.local.cluster import LocalCluster
from agentserving_cli.local.layout import ClusterSpec
from agentserving_cli.summary import EngineTotals, Summary, summarise

POLICIES = ("fcfs", DEFAULT.name)
# Two of the paper's kinds and agents with long contexts; sizes of programs spread.
KINDS = ("coding", "react", "chatbot", "map-reduce", "mcts")
# The size of a block with which vLLM computes attention on CPUs, and the simulator's.
BLOCK_TOKENS = {"vllm": 32, "simulator": 16}
# How long reports of the last calls may take.
IDLE_BOUND_S, ACKNOWLEDGED_BOUND_S = 30.0, 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """What to run.

    programs: of a round, without those that fill the engines first. open_programs: so many at a time; the next one
    begins when one ends. rounds: each with other programs, under both policies in turn. scale: factor on the paper's
    token counts. slots: calls that an engine runs at a time. kv_tokens: of KV cache that an engine has.
    """

    engine: str
    programs: int
    open_programs: int
    rounds: int
    scale: float
    slots: int
    kv_tokens: int
    seed: int
    out: Path

    @property
    def engine_args(self) -> tuple[str, ...]:
        """Flags that limit the KV cache of an engine."""
        block = BLOCK_TOKENS[self.engine]
        blocks = str(-(-self.kv_tokens // block))
        if self.engine == "simulator":
            return ("--num-blocks", blocks)
        return ("--block-size", str(block), "--num-gpu-blocks-override", blocks, "--enable-prefix-caching")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """What was seen in one round under a policy. `tokens`: output of all programs, those not counted included."""

    results: list[ProgramResult]
    accounts: dict[str, Program]
    totals: EngineTotals
    tokens: int
    took_s: float


def _summary(policy: str, rounds: Sequence[_Round]) -> Summary:
    """Of some rounds together."""
    return summarise(
        policy,
        [result for each in rounds for result in each.results],
        {program: row for each in rounds for program, row in each.accounts.items()},
        sum((each.totals for each in rounds), EngineTotals()),
        tokens_per_s=sum(each.tokens for each in rounds) / max(0.001, sum(each.took_s for each in rounds)),
    )


def _totals(overview: Overview) -> EngineTotals:
    loads = [engine.load for engine in overview.engines]
    return EngineTotals(
        preemptions=sum(load.preemptions_proactive for load in loads),
        prompt_tokens=sum(load.prompt_tokens for load in loads),
        cached_tokens=sum(load.cached_tokens for load in loads),
    )


async def _until_idle(client: AsyncClient) -> Overview:
    """Waits until no call is in flight: then all service has been reported."""
    deadline = time.monotonic() + IDLE_BOUND_S
    while True:
        overview = await client.get_overview()
        if not overview.calls_running + overview.calls_waiting or time.monotonic() > deadline:
            return overview
        await asyncio.sleep(0.1)


async def _use_policy(client: AsyncClient, name: str) -> int:
    """Puts a policy in force on every engine; gives its version. TimeoutError."""
    version = (await client.set_policy(name)).version
    async with asyncio.timeout(ACKNOWLEDGED_BOUND_S):
        while True:
            if not (await client.get_policy()).pending_engine_ids:
                return version
            await asyncio.sleep(0.1)


async def _run(
    cluster: LocalCluster, client: AsyncClient, name: str, plan: DemoPlan, number: int, bar: ProgressBar
) -> _Round:
    """One round under a policy. The programs that fill the engines at first are not counted."""
    await _use_policy(client, name)
    before = _totals(await _until_idle(client))
    total = plan.open_programs + plan.programs
    task = bar.add_task(f"{name.upper()}, round {number + 1}", total=total)
    began = time.monotonic()
    results = await run_mixed_load(
        cluster.gateway_url,
        cluster.spec.model,
        programs=total,
        most_open=plan.open_programs,
        seed=plan.seed + number,
        scale=plan.scale,
        shapes=KINDS,
        api_key=cluster.key("client"),
        on_progress=lambda progress: bar.update(task, completed=progress.done, total=progress.total),
    )
    took_s = time.monotonic() - began
    for result in [each for each in results if each.failed][:3]:
        bar.console.print(f"{result.program_id} failed: {result.error}", markup=False)
    after = _totals(await _until_idle(client))
    counted = results[plan.open_programs :]
    return _Round(
        results=counted,
        accounts=await _accounts(client, counted),
        totals=after.since(before),
        tokens=sum(result.output_tokens for result in results),
        took_s=took_s,
    )


async def _run_all(
    cluster: LocalCluster, client: AsyncClient, plan: DemoPlan, console: Console
) -> dict[str, list[_Round]]:
    """All rounds. The order of the policies alternates: a machine that becomes slower or faster favours neither."""
    columns = (TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rounds: dict[str, list[_Round]] = {name: [] for name in POLICIES}
    with ProgressBar(*columns, console=console) as bar:
        for number in range(plan.rounds):
            for name in POLICIES if number % 2 == 0 else reversed(POLICIES):
                rounds[name].append(await _run(cluster, client, name, plan, number, bar))
    return rounds


async def _accounts(client: AsyncClient, results: Sequence[ProgramResult]) -> dict[str, Program]:
    """The programs' rows; a program whose first call failed may have none."""
    rows: dict[str, Program] = {}
    for result in results:
        try:
            rows[result.program_id] = await client.get_program(result.program_id)
        except AgentServingError:
            continue
    return rows


def table_of(summaries: list[Summary]) -> Table:
    """One column a policy, and the ratio of the first to the last."""
    table = Table(title="The same programs, two policies")
    table.add_column("")
    for summary in summaries:
        table.add_column(summary.policy.upper(), justify="right")
    table.add_column("better", justify="right")
    first, last = summaries[0], summaries[-1]
    for label, name, form in (
        ("program latency, mean (s)", "latency_mean_s", "{:.2f}"),
        ("program latency, p95 (s)", "latency_p95_s", "{:.2f}"),
        ("program latency, p99 (s)", "latency_p99_s", "{:.2f}"),
        ("token latency, mean (ms/token)", "token_latency_mean_ms", "{:.1f}"),
        ("token latency, p95 (ms/token)", "token_latency_p95_ms", "{:.1f}"),
        ("output tokens per second", "tokens_per_s", "{:.0f}"),
        ("share of life spent waiting", "wait_share", "{:.0%}"),
        ("preemptions", "preemptions", "{:.0f}"),
        ("prefix hits", "prefix_hits", "{:.0%}"),
        ("programs failed", "failed", "{:.0f}"),
    ):
        before, after = getattr(first, name), getattr(last, name)
        ratio = ""
        if name == "tokens_per_s" and before:
            ratio = f"{after / before:.2f}x"
        elif "latency" in name and after:
            ratio = f"{before / after:.2f}x"
        table.add_row(label, *(form.format(getattr(summary, name)) for summary in summaries), ratio)
    return table


async def run_demo(plan: DemoPlan, console: Console) -> None:
    """Runs the plan; writes results.json and demo.png into `plan.out`."""
    plan.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="agentserving-demo-") as directory:
        spec = ClusterSpec(
            Path(directory),
            engine=plan.engine,
            policy=POLICIES[0],
            max_num_seqs=plan.slots,
            engine_args=plan.engine_args,
        )
        with console.status("starting") as status:
            cluster = LocalCluster(spec, lambda text: status.update(f"starting: {text}"))
            await cluster.__aenter__()
        try:
            console.print(
                f"{spec.engines} {plan.engine} engines are up, {plan.slots} calls at a time and {plan.kv_tokens} "
                f"tokens of KV cache each. {plan.open_programs} agent programs at a time, {plan.programs} in a round "
                f"after the first {plan.open_programs}, which fill the engines and are not counted:"
            )
            settings = Settings(tls=None, api_key=cluster.key("admin"))
            async with AsyncClient(cluster.control_plane, settings=settings) as client:
                rounds = await _run_all(cluster, client, plan, console)
        finally:
            await cluster.stop()
    summaries = [_summary(name, seen) for name, seen in rounds.items()]
    console.print(table_of(summaries))
    results = plan.out / "results.json"
    document = [
        {**asdict(_summary(name, seen)), "rounds": [asdict(_summary(name, [each])) for each in seen]}
        for name, seen in rounds.items()
    ]
    results.write_text(json.dumps(document, indent=2) + "\n")
    picture = draw(summaries, plan.out / "demo.png")
    console.print(f"results: {results}\npicture: {picture}")
