"""Added latency of the plugin for a lone call: stock vLLM and vLLM with the plugin in one process, call by call.

On a shared machine a server differs from a second copy of itself by 9 % (`low_load`, side "again"); two engines in one
process that alternate on one core differ by a percent. `main` runs in vLLM's own environment, where `measure` starts
it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # At run time `main` runs where neither this package nor the others of the repository are installed.
    from benchmarks.bars import Bar

ROUNDS, PROMPT, TOKENS = 200, 60, 40
# "again" is stock vLLM a second time: its distance from itself is the resolution of this machine.
SIDES = ("stock", "again", "plugin")


def measure() -> Any:
    """Runs the benchmark; gives its raw figures."""
    from agentserving_cli.local import vllm_env
    from agentserving_cli.local.layout import cpu_dtype, engine_env

    python = vllm_env.ensure_vllm()
    model = vllm_env.ensure_model(python)
    with tempfile.TemporaryDirectory(prefix="agentserving-bench-") as directory:
        home = Path(directory)
        (home / "key").write_text(os.urandom(32).hex())
        env = engine_env("alone", home, home / "key", 0)
        own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
        argv = [str(python), __file__, str(model), cpu_dtype()]
        done = subprocess.run(argv, env={**os.environ, **env, **own}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def summarise(raw: Any) -> list[Bar]:
    """The bars of raw figures."""
    from benchmarks.bars import bar

    bars = []
    for side in SIDES[1:]:
        # Blocks of ten rounds: one call is too short for a ratio of its own.
        blocks = [range(at, at + 10) for at in range(0, ROUNDS, 10)]
        ratios = [sum(raw[side][i] for i in block) / sum(raw["stock"][i] for i in block) for block in blocks]
        bars.append(bar(f"alone-{side}", ratios, "<= 1.02", "ratio", "stock vLLM in the same process, a lone call"))
    return bars


def main(model: str, dtype: str) -> None:
    """Prints the seconds of each call of each side as JSON, on the last line."""
    from vllm import LLM, SamplingParams

    def engine(**more: Any) -> Any:
        return LLM(model=model, load_format="dummy", dtype=dtype, enforce_eager=True, max_num_seqs=8, **more)

    stock, plugin = engine(), engine(scheduler_cls="agentserving_engine.scheduler.ProgramScheduler")
    engines = {"stock": stock, "again": stock, "plugin": plugin}
    sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    rng = random.Random(0)
    took: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(-5, ROUNDS):
        for side in rng.sample(SIDES, len(SIDES)):
            prompt = [rng.randrange(5, 250) for _ in range(PROMPT)]
            began = time.perf_counter()
            engines[side].generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
            if number >= 0:
                took[side].append(time.perf_counter() - began)
    print(json.dumps(took))


if __name__ == "__main__":
    main(*sys.argv[1:])
