"""The demo: one load of agent programs under FCFS and then under the default policy, on the same engines."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
from agentserving import AgentServingError, AsyncClient
from agentserving.client.values import Overview, Program
from agentserving.contract.policy import DEFAULT
from agentserving.transport.connection import Settings
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from agentserving_cli.figures import draw
from agentserving_cli.load import ProgramResult, Progress, run_mixed_load
from agentserving_cli.local.cluster import LocalCluster
from agentserving_cli.local.layout import ClusterSpec
from agentserving_cli.summary import EngineTotals, Summary, summarise

POLICIES = ("fcfs", DEFAULT.name)
# Mean output tokens of a program of the four kinds, at scale 1.
TOKENS_PER_PROGRAM = 900
# Share of the engines' decode throughput that output tokens may take: with the prompts that is a slight overload.
FILL = 0.6
# How long reports of the last calls may take.
IDLE_BOUND_S, ACKNOWLEDGED_BOUND_S = 30.0, 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """What to run.

    rate: programs a second. scale: factor on the paper's token counts, 0 = as much as overloads the engines slightly.
    slots: calls that an engine runs at a time.
    """

    engine: str
    programs: int
    rate: float
    scale: float
    slots: int
    seed: int
    out: Path


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


async def _filling_scale(cluster: LocalCluster, plan: DemoPlan) -> float:
    """The scale at which arriving programs ask for slightly more than the engines serve."""
    calls, tokens = 2 * plan.slots * cluster.spec.engines, 60
    body = {"model": cluster.spec.model, "prompt": "hello", "max_tokens": tokens, "ignore_eos": True}
    tokens_per_s = 0.0
    key = {"authorization": f"Bearer {cluster.key('client')}"}
    async with httpx.AsyncClient(base_url=cluster.gateway_url, timeout=300, trust_env=False, headers=key) as client:
        # The first round warms the engines up.
        for _ in range(2):
            began = time.monotonic()
            answers = await asyncio.gather(*(client.post("/completions", json=body) for _ in range(calls)))
            served = sum(answer.json()["usage"]["completion_tokens"] for answer in answers)
            tokens_per_s = served / (time.monotonic() - began)
    return min(2.0, max(0.05, round(FILL * tokens_per_s / (plan.rate * TOKENS_PER_PROGRAM), 2)))


async def _run_policy(
    cluster: LocalCluster, client: AsyncClient, name: str, plan: DemoPlan, bar: ProgressBar
) -> Summary:
    version = await _use_policy(client, name)
    before = _totals(await _until_idle(client))
    task = bar.add_task(f"{name.upper()} (version {version})", total=plan.programs)

    def progressed(progress: Progress) -> None:
        bar.update(task, completed=progress.done, total=progress.total)

    results = await run_mixed_load(
        cluster.gateway_url,
        cluster.spec.model,
        programs=plan.programs,
        rate_per_s=plan.rate,
        seed=plan.seed,
        scale=plan.scale,
        api_key=cluster.key("client"),
        on_progress=progressed,
    )
    for result in [each for each in results if each.failed][:3]:
        bar.console.print(f"{result.program_id} failed: {result.error}", markup=False)
    after = _totals(await _until_idle(client))
    return summarise(name, results, await _accounts(client, results), after.since(before))


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
        ("share of life spent waiting", "wait_share", "{:.0%}"),
        ("preemptions", "preemptions", "{:.0f}"),
        ("prefix hits", "prefix_hits", "{:.0%}"),
        ("programs failed", "failed", "{:.0f}"),
    ):
        before, after = getattr(first, name), getattr(last, name)
        ratio = f"{before / after:.2f}x" if "latency" in name and after else ""
        table.add_row(label, *(form.format(getattr(summary, name)) for summary in summaries), ratio)
    return table


async def run_demo(plan: DemoPlan, console: Console) -> None:
    """Runs the plan; writes results.json and demo.png into `plan.out`."""
    plan.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="agentserving-demo-") as directory:
        spec = ClusterSpec(Path(directory), engine=plan.engine, policy=POLICIES[0], max_num_seqs=plan.slots)
        with console.status("starting") as status:
            cluster = LocalCluster(spec, lambda text: status.update(f"starting: {text}"))
            await cluster.__aenter__()
        try:
            plan = replace(plan, scale=plan.scale or await _filling_scale(cluster, plan))
            console.print(
                f"{spec.engines} {plan.engine} engines are up, {plan.slots} calls at a time each. "
                f"{plan.programs} programs, {plan.rate:g} a second, {plan.scale:g} of the paper's tokens:"
            )
            columns = (TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            async with AsyncClient(
                cluster.control_plane, settings=Settings(tls=None, api_key=cluster.key("admin"))
            ) as client:
                with ProgressBar(*columns, console=console) as bar:
                    summaries = [await _run_policy(cluster, client, name, plan, bar) for name in POLICIES]
        finally:
            await cluster.stop()
    console.print(table_of(summaries))
    results = plan.out / "results.json"
    results.write_text(json.dumps([asdict(summary) for summary in summaries], indent=2) + "\n")
    picture = draw(summaries, plan.out / "demo.png")
    console.print(f"results: {results}\npicture: {picture}")
