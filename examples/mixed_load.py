"""A small load of agent programs against any OpenAI-compatible address:

OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=as_... python -m examples.mixed_load

The programs are in agentserving_cli.load: plain OpenAI SDK agents that name themselves in two headers.
"""

from __future__ import annotations

import asyncio
import os

import openai
from agentserving_cli.load import run_mixed_load

__all__ = ["run_mixed_load"]


def main() -> None:
    """Prints one line a program."""
    base_url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")
    api_key = os.environ.get("OPENAI_API_KEY", "none")
    model = os.environ.get("MODEL") or openai.OpenAI(base_url=base_url, api_key=api_key).models.list().data[0].id
    load = run_mixed_load(base_url, model, programs=8, rate_per_s=2, seed=1, scale=0.3, api_key=api_key)
    for result in asyncio.run(load):
        state = f"failed: {result.error}" if result.failed else f"{result.output_tokens} tokens, {result.calls} calls"
        print(f"{result.program_id:<28} {result.latency_s:6.2f} s  {state}")


if __name__ == "__main__":
    main()
