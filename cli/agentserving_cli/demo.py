"""The demo: one load of agent programs, first under FCFS, then under the default policy, on the same engines."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import httpx
from agentserving.contract.policy import DEFAULT
from agentserving.v1 import admin_service_pb2 as admin
from agentserving.v1 import types_pb2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agentserving_cli.connection import Services, connect, wait_for_policy
from agentserving_cli.figures import draw
from agentserving_cli.local.cluster import LocalCluster
from agentserving_cli.local.layout import ClusterSpec
from agentserving_cli.summary import Summary, summarise

POLICIES = ("fcfs", DEFAULT.name)
# Output tokens of a program of the four kinds, on average, at scale 1.
TOKENS_PER_PROGRAM = 900
# Of what full engines make in decode alone: prompts take the rest, and a little more.
FILL = 0.6


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What to run: `rate` programs arrive a second, `scale` times the paper's token counts (0: what fills the engines),
    `slots` calls at once on an engine."""

    engine: str
    programs: int
    rate: float
    scale: float
    slots: int
    seed: int
    out: Path


def load_examples() -> ModuleType:
    """examples.mixed_load of the checkout: plain OpenAI SDK agents, not part of any component."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "examples" / "mixed_load.py").exists():
        raise FileNotFoundError(f"{root}/examples: the demo runs from a checkout")
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return importlib.import_module("examples.mixed_load")


def _engine_totals(overview: admin.GetOverviewResponse) -> dict[str, int]:
    loads = [engine.load for engine in overview.engines]
    return {
        "preemptions": sum(load.preemptions_proactive for load in loads),
        "prompt_tokens": sum(load.prompt_tokens for load in loads),
        "cached_tokens": sum(load.cached_tokens for load in loads),
    }


async def _settle(stubs: Services, bound_s: float = 30.0) -> admin.GetOverviewResponse:
    """Until no call is in flight: then every service has been reported."""
    deadline = asyncio.get_running_loop().time() + bound_s
    while True:
        overview: admin.GetOverviewResponse = stubs.admin.GetOverview(admin.GetOverviewRequest(), timeout=10)
        if not overview.calls_running + overview.calls_waiting or asyncio.get_running_loop().time() > deadline:
            return overview
        await asyncio.sleep(0.1)


async def _filling_scale(cluster: LocalCluster, plan: DemoPlan) -> float:
    """The scale at which programs bring a little more than full engines get done."""
    calls, tokens = 2 * plan.slots * cluster.spec.engines, 60
    body = {"model": cluster.spec.model, "prompt": "hello", "max_tokens": tokens, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=cluster.gateway_url, timeout=300, trust_env=False) as client:
        for _ in range(2):
            began = time.monotonic()
            answers = await asyncio.gather(*(client.post("/completions", json=body) for _ in range(calls)))
            tokens_per_s: float = sum(a.json()["usage"]["completion_tokens"] for a in answers) / (
                time.monotonic() - began
            )
    return min(2.0, max(0.05, round(FILL * tokens_per_s / (plan.rate * TOKENS_PER_PROGRAM), 2)))


async def _run_policy(cluster: LocalCluster, stubs: Services, name: str, plan: DemoPlan, bar: Progress) -> Summary:
    examples = load_examples()
    request = admin.ApplyPolicyRequest(policy=types_pb2.Policy(name=name))
    version = stubs.admin.ApplyPolicy(request, timeout=10).policy.version
    await asyncio.to_thread(wait_for_policy, stubs, version)
    before = _engine_totals(await _settle(stubs))
    task = bar.add_task(f"{name.upper()} (version {version})", total=plan.programs)

    def progressed(progress: Any) -> None:
        bar.update(task, completed=progress.done, total=progress.total)

    results = await examples.run_mixed_load(
        cluster.gateway_url,
        "tiny",
        programs=plan.programs,
        rate_per_s=plan.rate,
        seed=plan.seed,
        scale=plan.scale,
        on_progress=progressed,
    )
    for result in [each for each in results if each.failed][:3]:
        bar.console.print(f"{result.program_id} failed: {result.error}", markup=False)
    after = _engine_totals(await _settle(stubs))
    rows = {}
    for result in results:
        rows[result.program_id] = _program(stubs, result.program_id)
    return summarise(name, results, rows, {key: after[key] - before[key] for key in after})


def _program(stubs: Services, program_id: str) -> types_pb2.Program:
    from agentserving.v1 import program_service_pb2

    try:
        request = program_service_pb2.GetProgramRequest(program_id=program_id)
        told: types_pb2.Program = stubs.programs.GetProgram(request, timeout=10).program
        return told
    except grpc.RpcError:
        return types_pb2.Program(program_id=program_id)


def table_of(summaries: list[Summary]) -> Table:
    """One column a policy, and how many times better the last is than the first."""
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
    """Everything; leaves results.json and demo.png in `plan.out`."""
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
            with (
                connect(cluster.control_plane) as client,
                Progress(
                    TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                    console=console,
                ) as bar,
            ):  # fmt: skip
                stubs = Services(client)
                summaries = [await _run_policy(cluster, stubs, name, plan, bar) for name in POLICIES]
        finally:
            await cluster.stop()
    console.print(table_of(summaries))
    results = plan.out / "results.json"
    results.write_text(json.dumps([asdict(summary) for summary in summaries], indent=2) + "\n")
    picture = draw(summaries, plan.out / "demo.png")
    console.print(f"results: {results}\npicture: {picture}")
