"""``AGENTSERVING_VLLM_PYTHON=... python -m benchmarks.gpu``: policies on a real vLLM with a model of 8B's shape.

Weights are random (``--load-format dummy``), so nothing is downloaded: times hang on shapes, not on values. KV that is
evicted goes to host memory (vLLM's own offloading). Policies take turns on one engine, seed by seed, over the same
ShareGPT-like programs, whose prompts are token ids. ``--device cpu`` does all of it with the tiny model, a small KV
cache and no offloading (vLLM's needs CUDA): to see that the script works, not to conclude.

The engine's constants are measured first, and each run is repeated in virtual time: with them, at the speed that the
engine had in that run (see `validation.run_virtual`), with and without preemptions for order, and with the constants of
the data sheet that the paper's experiments use. ``--told FILE`` prints that comparison of an earlier run's figures.
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
from agentserving.contract.policy import PRESETS
from agentserving.v1 import types_pb2
from agentserving_cli.connection import Services
from agentserving_cli.local import vllm_env
from agentserving_cli.local.layout import TINY
from agentserving_replay.traces.trace import Program
from agentserving_replay.workloads import generate
from agentserving_simulator.cost_model import CostModel, cost_model
from agentserving_simulator.virtual.engine import EngineLimits
from rich.console import Console
from rich.table import Table

from benchmarks.bars import RESULTS
from benchmarks.local import cluster, engine_totals, until_idle, use_policy
from benchmarks.policies import filling_scale
from benchmarks.program_figures import Figures, counted, figures
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
TOLD = (
    "token_ms", "token_p99_ms", "latency_s", "latency_p95_s", "prefix_hits", "preemptions", "preemptions_reactive",
)  # fmt: skip
_MANY = httpx.Limits(max_connections=None, max_keepalive_connections=100)


@dataclass(frozen=True, slots=True)
class Device:
    """Engine and load of a device."""

    slots: int
    programs: int
    rate_per_s: float
    # Of the tokens of ShareGPT-like programs; 0: as many as a slow engine can serve, and a tenth more.
    scale: float
    max_context: int
    # Contexts with which the engine's reading of KV is measured, a batch of them at once.
    deep_tokens: int
    # KV in host memory, GiB.
    host_gib: int
    engine_args: tuple[str, ...]
    # What the data sheets tell of it, where there are some.
    sheet: CostModel | None = None


DEVICES = {
    # 3 GiB of KV is 24,576 tokens, about what 24 running calls hold in the mean: programs between calls find no room.
    "cuda": Device(24, 240, 10.0, 0.25, 8000, 700, 8, (
        "--load-format", "dummy", "--max-num-seqs", "24", "--max-model-len", "8192",
        "--max-num-batched-tokens", "2048", "--kv-cache-memory-bytes", str(3 << 30), "--kv-offloading-size", "8",
    ), cost_model("h100-80gb", "llama-3.1-8b")),
    "cpu": Device(8, 40, 3.0, 0.0, 7500, 2000, 0, ("--num-gpu-blocks-override", "1200")),
}  # fmt: skip


def shaped_model(directory: Path, tiny: Path) -> Path:
    """A directory that vLLM takes for an 8B model: the tiny one's tokenizer, and a larger shape."""
    directory.mkdir(parents=True)
    config = json.loads((tiny / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **SHAPE_8B}, indent=1))
    for name in TOKENIZER:
        shutil.copy(tiny / name, directory / name)
    return directory


def drawn(document: dict[str, Any], seed: int) -> list[Program]:
    """The programs of a seed."""
    own = DEVICES[document["device"]]
    programs = generate("sharegpt", seed, own.rate_per_s, own.programs)
    return scaled(programs, document["scale"], own.max_context)


async def measure(document: dict[str, Any], seeds: int, policies: Sequence[str], out: Path) -> None:
    """Figures of every policy on every seed; `out` has what is known after each run."""
    own = DEVICES[document["device"]]
    with tempfile.TemporaryDirectory(prefix="agentserving-gpu-") as home:
        model = TINY
        if document["device"] == "cuda":
            tiny = await asyncio.to_thread(lambda: vllm_env.ensure_model(vllm_env.ensure_vllm()))
            model = str(shaped_model(Path(home) / "8b", tiny))
        args = tuple(document["args"])
        async with (
            cluster(engines=1, max_num_seqs=own.slots, model=model, engine_args=args) as (made, stubs),
            httpx.AsyncClient(base_url=made.gateway_url + "/", timeout=1800, trust_env=False, limits=_MANY) as client,
        ):
            caller = Caller(client, 1, model)
            await use_policy(stubs, types_pb2.Policy(name="fcfs"))
            # What is compiled or captured on first use must not be the first policy's.
            await asyncio.gather(*(caller.call(caller.fresh(200), 50, f"warm-{i}") for i in range(own.slots)))
            engine = await constants_of(stubs, caller, own.slots, own.deep_tokens)
            document["engine"] = asdict(engine)
            document["limits"] = asdict(limits_of(stubs)) | {"host_blocks": own.host_gib * (1 << 30) // KV_BLOCK_BYTES}
            document["scale"] = own.scale or 1.1 * await filling_scale(made.gateway_url, own.rate_per_s)
            print(f"  {document['engine']}", flush=True)
            for seed in range(seeds):
                turn = seed % len(policies)
                for policy in (*policies[turn:], *policies[:turn]):
                    document["rows"].append(await one_run(stubs, caller, policy, seed, drawn(document, seed)))
                    out.write_text(json.dumps(document, indent=1) + "\n")
                    print(f"  seed {seed} {policy}: {document['rows'][-1]['figures']}", flush=True)


async def one_run(stubs: Services, caller: Caller, policy: str, seed: int, programs: list[Program]) -> dict[str, Any]:
    """Figures of the programs under a policy."""
    await use_policy(stubs, types_pb2.Policy(name=policy))
    before = engine_totals(stubs)
    latencies = await run_real(caller, programs, f"{policy}-{seed}")
    await until_idle(stubs)
    served_us = service_us(stubs, [f"{policy}-{seed}-{program.program_id}" for program in programs])
    told = figures(programs, latencies, counted(before, engine_totals(stubs)))
    return {"policy": policy, "seed": seed, "figures": told, "served_us": served_us, "latencies": latencies}


def virtually(document: dict[str, Any], row: dict[str, Any], sheet: CostModel | None = None,
              **changed: Any) -> Figures:  # fmt: skip
    """A run's figures in virtual time, with a data sheet's constants or with those that were measured; `changed` of the
    policy."""
    programs, policy = drawn(document, row["seed"]), replace(PRESETS[row["policy"]], **changed)
    limits, measured = EngineLimits(**document["limits"]), document["engine"]
    engine = Calibration(CostModel(**measured["cost"]), measured["overhead_s"], measured["charged"])
    cost = sheet or run_virtual(programs, policy, engine, limits, row["served_us"])[1]
    results, simulated = simulate(programs, policy, cost, limits, engine.overhead_s)
    counters = asdict(simulated.engines[0].model.counters)
    return figures(programs, latencies_s(programs, results, 0.0), counters) | {"speed": cost.speed}


def table(document: dict[str, Any]) -> Table:
    """Means over seeds, of each policy: on the engine, and in virtual time by measured and by sheet constants."""
    sheet = DEVICES[document["device"]].sheet
    made = Table("policy", "", *TOLD, "speed", title=f"policies on {document['device']}")
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
            means = (statistics.fmean(run.get(name, 1.0) for run in runs) for name in (*TOLD, "speed"))
            made.add_row(policy, kind, *(f"{mean:.4g}" for mean in means))
        made.add_section()
    return made


@click.command()
@click.option("--device", type=click.Choice(list(DEVICES)), default="cuda", show_default=True)
@click.option("--seeds", default=1, show_default=True, help="Runs of every policy; about a minute each on an H100.")
@click.option("--policy", "policies", multiple=True, default=POLICIES, show_default=True)
@click.option("--engine-arg", "engine_args", multiple=True, help="Further arguments of vLLM; the last one counts.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Raw figures; default: benchmarks/results/gpu-DEVICE.json."
)
@click.option("--told", type=click.Path(path_type=Path, exists=True), help="Only print the table of these raw figures.")
def main(device: str, seeds: int, policies: tuple[str, ...], engine_args: tuple[str, ...], out: Path | None,
         told: Path | None) -> None:  # fmt: skip
    """Measures, prints a table and writes the raw figures."""
    if told:
        document = json.loads(told.read_text())
    else:
        if device == "cuda" and not vllm_env.visible_gpus():
            raise click.ClickException("no NVIDIA GPU is visible; --device cpu tries the script without one")
        document = {"device": device, "args": [*DEVICES[device].engine_args, *engine_args], "rows": []}
        asyncio.run(measure(document, seeds, policies, out or RESULTS / f"gpu-{device}.json"))
    Console(width=160).print(table(document))


if __name__ == "__main__":
    sys.exit(main())
