"""``AGENTSERVING_VLLM_PYTHON=... python -m benchmarks.gpu``: policies on a real vLLM with a model of 8B's shape.

Weights are random (``--load-format dummy``), so nothing is downloaded: times hang on shapes, not on values. KV that is
evicted goes to host memory (vLLM's own offloading). Policies take turns on one engine, seed by seed, over the same
ShareGPT-like programs, whose prompts are token ids. ``--device cpu`` does all of it with the tiny model, a small KV
cache and no offloading (vLLM's needs CUDA): to see that the script works, not to conclude.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
from agentserving.v1 import types_pb2
from agentserving_cli.local import vllm_env
from agentserving_cli.local.layout import TINY
from agentserving_replay.figures import interval
from agentserving_replay.trace import Program
from agentserving_replay.workloads import generate
from rich.console import Console
from rich.table import Table

from benchmarks.bars import RESULTS
from benchmarks.local import cluster, engine_totals, use_policy
from benchmarks.policies import filling_scale
from benchmarks.program_figures import counted, figures
from benchmarks.validation import Caller, run_real, scaled

POLICIES = ("fcfs", "mlfq", "plas", "atlas", "program-plas")
# Llama 3.1 8B's config.json on the hub, but for its long-context rope.
SHAPE_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}  # fmt: skip
MAX_CONTEXT = 32_000
_MANY = httpx.Limits(max_connections=None, max_keepalive_connections=100)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class Device:
    """Engine and load of a device."""

    slots: int
    programs: int
    rate_per_s: float
    engine_args: tuple[str, ...]


DEVICES = {
    # 12 GiB of KV (98,000 tokens), 64 GiB of host memory behind it: 48 contexts of some thousand tokens do not fit.
    "cuda": Device(48, 240, 2.0, (
        "--load-format", "dummy", "--max-num-seqs", "48", "--max-model-len", "32768",
        "--kv-cache-memory-bytes", str(12 << 30), "--kv-offloading-size", "64",
    )),
    # 1,200 blocks of 16 tokens.
    "cpu": Device(8, 40, 3.0, ("--num-gpu-blocks-override", "1200")),
}  # fmt: skip


def shaped_model(directory: Path, tiny: Path) -> Path:
    """A directory that vLLM takes for an 8B model: the tiny one's tokenizer, and a larger shape."""
    directory.mkdir(parents=True)
    config = json.loads((tiny / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **SHAPE_8B}, indent=1))
    for name in TOKENIZER:
        shutil.copy(tiny / name, directory / name)
    return directory


async def measure(device: str, seeds: int, policies: Sequence[str], engine_args: tuple[str, ...]) -> list[Any]:
    """Figures of every policy on every seed."""
    own = DEVICES[device]
    rows: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="agentserving-gpu-") as home:
        model = TINY
        if device == "cuda":
            python = await asyncio.to_thread(vllm_env.ensure_vllm)
            model = str(shaped_model(Path(home) / "8b", await asyncio.to_thread(vllm_env.ensure_model, python)))
        args = own.engine_args + engine_args
        async with (
            cluster(engines=1, max_num_seqs=own.slots, model=model, engine_args=args) as (made, stubs),
            httpx.AsyncClient(base_url=made.gateway_url + "/", timeout=1800, trust_env=False, limits=_MANY) as client,
        ):
            caller = Caller(client, 1, model)
            # What is compiled or captured on first use must not be the first policy's.
            await asyncio.gather(*(caller.call(caller.fresh(200), 50, f"warm-{i}") for i in range(own.slots)))
            for seed in range(seeds):
                programs = await _programs(device, made.gateway_url, seed)
                turn = seed % len(policies)
                for policy in (*policies[turn:], *policies[:turn]):
                    await use_policy(stubs, types_pb2.Policy(name=policy))
                    before = engine_totals(stubs)
                    latencies = await run_real(caller, programs, f"{policy}-{seed}")
                    await asyncio.sleep(0.6)  # the last report is in
                    told = figures(programs, latencies, counted(before, engine_totals(stubs)))
                    rows.append({"policy": policy, "seed": seed, "figures": told})
                    print(f"  seed {seed} {policy}: {told}", flush=True)
    return rows


async def _programs(device: str, url: str, seed: int) -> list[Program]:
    own = DEVICES[device]
    programs = generate("sharegpt", seed, own.rate_per_s, own.programs)
    if device == "cuda":
        return scaled(programs, 1.0, MAX_CONTEXT)
    # As many tokens as a slow engine can serve, and a tenth more.
    return scaled(programs, 1.1 * await filling_scale(url, own.rate_per_s))


@click.command()
@click.option("--device", type=click.Choice(list(DEVICES)), default="cuda", show_default=True)
@click.option("--seeds", default=1, show_default=True, help="Runs of every policy; about 3 minutes each on an H100.")
@click.option("--policy", "policies", multiple=True, default=POLICIES, show_default=True)
@click.option("--engine-arg", "engine_args", multiple=True, help="Further arguments of vLLM; the last one counts.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Raw figures; default: benchmarks/results/gpu-DEVICE.json."
)
def main(device: str, seeds: int, policies: tuple[str, ...], engine_args: tuple[str, ...], out: Path | None) -> None:
    """Measures, prints a table and writes the raw figures."""
    if device == "cuda" and not vllm_env.visible_gpus():
        raise click.ClickException("no NVIDIA GPU is visible; --device cpu tries the script without one")
    rows = asyncio.run(measure(device, seeds, policies, engine_args))
    table = Table(title=f"policies on {device}")
    names = list(rows[0]["figures"])
    for column in ("policy", *names):
        table.add_column(column)
    for policy in policies:
        runs = [row["figures"] for row in rows if row["policy"] == policy]
        table.add_row(policy, *(f"{interval([run[name] for run in runs])[0]:.4g}" for name in names))
    Console(width=140).print(table)
    document = {"device": device, "args": [*DEVICES[device].engine_args, *engine_args], "rows": rows}
    (out or RESULTS / f"gpu-{device}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
