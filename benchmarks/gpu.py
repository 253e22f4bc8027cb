"""``AGENTSERVING_VLLM_PYTHON=... python -m benchmarks.gpu``: policies on a real vLLM with a model of 8B's shape.

Weights are random (``--load-format dummy``), so nothing is downloaded: times depend on shapes, not on values. Evicted
KV goes to host memory (vLLM's own offloading). Policies alternate on one engine, seed by seed, over the same
ShareGPT-like programs, whose prompts are token ids. ``--device cpu`` does the same with the tiny model, a small KV
cache and no offloading (vLLM's needs CUDA): it shows that the script works, and no conclusion follows from it.

The engine's constants are measured first, and each run is repeated in virtual time: with these constants at the speed
fitted to that run (see `validation.run_virtual`), with and without proactive preemptions, and with the constants of the
data sheet that the paper's experiments use. ``--table FILE`` prints that comparison for the figures of an earlier run.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import httpx
from agentserving import Client
from agentserving.contract.policy import PRESETS
from agentserving_cli.local import vllm_env
from agentserving_cli.local.layout import TINY
from agentserving_replay.traces.trace import Program
from agentserving_replay.workloads import generate
from agentserving_simulator.cost_model import CostModel, cost_model
from agentserving_simulator.virtual.limits import EngineLimits
from rich.console import Console
from rich.table import Table

from benchmarks.local import cluster, engine_totals, until_idle, use_policy
from benchmarks.policies import filling_scale
from benchmarks.program_figures import Figures, counted, figures
from benchmarks.records import RESULTS, measured_now
from benchmarks.validation import (
    Calibration,
    Caller,
    constants_of,
    latencies_s,
    limits_of,
    run_real,
    run_virtual,
    scaled,
    service_us,
    simulate,
)

POLICIES = ("fcfs", "mlfq", "plas", "atlas", "program-plas")
# Llama 3.1 8B's config.json on the hub, but for its long-context rope.
SHAPE_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}  # fmt: skip
KV_BLOCK_BYTES = 16 * (128 << 10)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SHOWN = (
    "token_ms", "token_p99_ms", "latency_s", "latency_p95_s", "prefix_hits", "preemptions", "preemptions_reactive",
)  # fmt: skip
_MANY = httpx.Limits(max_connections=None, max_keepalive_connections=100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Engine and load for a device."""

    slots: int
    programs: int
    rate_per_s: float
    # Factor on the token counts of ShareGPT-like programs; 0: chosen so that the load is 1.1 times the engine's speed.
    scale: float
    max_context: int
    # Context per call of the full batch with which the time to read KV is measured.
    deep_tokens: int
    # KV in host memory, GiB.
    host_gib: int
    engine_args: tuple[str, ...]
    # Constants from the data sheet, where there is one.
    sheet: CostModel | None = None


DEVICES = {
    "cuda": Device(
        slots=24, programs=240, rate_per_s=10.0, scale=0.25, max_context=8000, deep_tokens=700, host_gib=8,
        # 3 GiB of KV is 24,576 tokens, about what 24 running calls need: programs between calls find no room.
        engine_args=(
            "--load-format", "dummy", "--max-num-seqs", "24", "--max-model-len", "8192",
            "--max-num-batched-tokens", "2048", "--kv-cache-memory-bytes", str(3 << 30), "--kv-offloading-size", "8",
        ),
        sheet=cost_model("h100-80gb", "llama-3.1-8b"),
    ),
    "cpu": Device(
        slots=8, programs=40, rate_per_s=3.0, scale=0.0, max_context=7500, deep_tokens=2000, host_gib=0,
        engine_args=("--num-gpu-blocks-override", "1200"),
    ),
}  # fmt: skip


def shaped_model(directory: Path, tiny: Path) -> Path:
    """A model directory with the tiny model's tokenizer and the shape of an 8B model."""
    directory.mkdir(parents=True)
    config = json.loads((tiny / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **SHAPE_8B}, indent=1))
    for name in TOKENIZER:
        shutil.copy(tiny / name, directory / name)
    return directory


def drawn(document: dict[str, Any], seed: int) -> list[Program]:
    """The programs that a seed draws; the same for every policy."""
    device = DEVICES[document["device"]]
    programs = generate("sharegpt", seed, device.rate_per_s, device.programs)
    return scaled(programs, document["scale"], device.max_context)


async def measure(document: dict[str, Any], seeds: int, policies: Sequence[str], out: Path) -> None:
    """Runs every policy on every seed; rewrites `out` after each run."""
    device = DEVICES[document["device"]]
    with tempfile.TemporaryDirectory(prefix="agentserving-gpu-") as home:
        model = TINY
        if document["device"] == "cuda":
            tiny = await asyncio.to_thread(lambda: vllm_env.ensure_model(vllm_env.ensure_vllm()))
            model = str(shaped_model(Path(home) / "8b", tiny))
        args = tuple(document["args"])
        async with (
            cluster(engines=1, max_num_seqs=device.slots, model=model, engine_args=args) as (running, client),
            httpx.AsyncClient(base_url=running.gateway_url + "/", timeout=1800, trust_env=False, limits=_MANY) as http,
        ):
            caller = Caller(http, 1, model)
            await use_policy(client, "fcfs")
            # Compilation and graph capture on first use must not be charged to the first policy.
            await asyncio.gather(*(caller.call(caller.fresh(200), 50, f"warm-{i}") for i in range(device.slots)))
            engine = await constants_of(client, caller, device.slots, device.deep_tokens)
            document["engine"] = asdict(engine)
            document["limits"] = asdict(limits_of(client)) | {
                "host_blocks": device.host_gib * (1 << 30) // KV_BLOCK_BYTES
            }
            document["scale"] = device.scale or 1.1 * await filling_scale(running.gateway_url, device.rate_per_s)
            print(f"  {document['engine']}", flush=True)
            for seed in range(seeds):
                turn = seed % len(policies)
                for policy in (*policies[turn:], *policies[:turn]):
                    document["rows"].append(await one_run(client, caller, policy, seed, drawn(document, seed)))
                    out.write_text(json.dumps(document, indent=1) + "\n")
                    print(f"  seed {seed} {policy}: {document['rows'][-1]['figures']}", flush=True)


async def one_run(client: Client, caller: Caller, policy: str, seed: int, programs: list[Program]) -> dict[str, Any]:
    """Runs the programs to their ends under one policy."""
    await use_policy(client, policy)
    before = engine_totals(client)
    latencies = await run_real(caller, programs, f"{policy}-{seed}")
    await until_idle(client)
    served_us = service_us(client, [f"{policy}-{seed}-{program.program_id}" for program in programs])
    measured = figures(programs, latencies, counted(before, engine_totals(client)))
    return {"policy": policy, "seed": seed, "figures": measured, "served_us": served_us, "latencies": latencies}


def virtually(document: dict[str, Any], row: dict[str, Any], sheet: CostModel | None = None,
              **changed: Any) -> Figures:  # fmt: skip
    """A run's figures in virtual time, with a data sheet's constants or the measured ones.

    `changed` overrides fields of the policy.
    """
    programs, policy = drawn(document, row["seed"]), replace(PRESETS[row["policy"]], **changed)
    limits, measured = EngineLimits(**document["limits"]), document["engine"]
    engine = Calibration(CostModel(**measured["cost"]), measured["overhead_s"], measured["charged"])
    cost = sheet or run_virtual(programs, policy, engine, limits, row["served_us"])[1]
    results, simulated = simulate(programs, policy, cost, limits, engine.overhead_s)
    counters = asdict(simulated.engines[0].model.counters)
    return figures(programs, latencies_s(programs, results, 0.0), counters) | {"speed": cost.speed}


def table(document: dict[str, Any]) -> Table:
    """Means over seeds for each policy: on the engine, and in virtual time with measured and data sheet constants."""
    sheet = DEVICES[document["device"]].sheet
    rows_of_policies = Table("policy", "", *SHOWN, "speed", title=f"policies on {document['device']}")
    for policy in dict.fromkeys(row["policy"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["policy"] == policy]
        kinds = {
            "engine": [row["figures"] for row in rows],
            "virtual": [virtually(document, row) for row in rows],
            "virtual, no preemptions": [virtually(document, row, max_preemptions=0) for row in rows],
        }
        if sheet:
            kinds["data sheet"] = [virtually(document, row, sheet) for row in rows]
        for kind, runs in kinds.items():
            means = (statistics.fmean(run.get(name, 1.0) for run in runs) for name in (*SHOWN, "speed"))
            rows_of_policies.add_row(policy, kind, *(f"{mean:.4g}" for mean in means))
        rows_of_policies.add_section()
    return rows_of_policies


@click.command()
@click.option("--device", type=click.Choice(list(DEVICES)), default="cuda", show_default=True)
@click.option("--seeds", default=1, show_default=True, help="Runs of every policy; about a minute each on an H100.")
@click.option("--policy", "policies", multiple=True, default=POLICIES, show_default=True)
@click.option("--engine-arg", "engine_args", multiple=True, help="Additional argument of vLLM; may be given again.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Raw figures; default: benchmarks/results/gpu-DEVICE.json."
)
@click.option(
    "--table",
    "earlier",
    type=click.Path(path_type=Path, exists=True),
    help="Only print the table of these raw figures.",
)
def main(device: str, seeds: int, policies: tuple[str, ...], engine_args: tuple[str, ...], out: Path | None,
         earlier: Path | None) -> None:  # fmt: skip
    """Measure, print a table and write the raw figures."""
    if earlier:
        document = json.loads(earlier.read_text())
    else:
        if device == "cuda" and not vllm_env.visible_gpus():
            raise click.ClickException("no NVIDIA GPU is visible; --device cpu runs the script without one")
        args = [*DEVICES[device].engine_args, *engine_args]
        document = {"device": device, "measured": asdict(measured_now()), "args": args, "rows": []}
        asyncio.run(measure(document, seeds, policies, out or RESULTS / f"gpu-{device}.json"))
    Console(width=160).print(table(document))


if __name__ == "__main__":
    sys.exit(main())
