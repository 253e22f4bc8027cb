"""Real vLLM (on the CPU, a tiny random model) in an engine pod, with the plugin: a preemption inside Kubernetes.

Its port is closed to all without a certificate of the cluster (`tls.engines`)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from kube import agents
from kube.cpu_vllm import real_vllm
from kube.demo import Demo
from kube.kubectl import Kubectl

NAMESPACE = "e2e-vllm"
READY_BOUND_S = 420.0
# In the agents' pod: long calls of two programs fill the engine and its queue, then a newcomer asks for little.
OVERLOAD = """
import asyncio, json, sys, time
import aiohttp, agentserving

async def call(session, program, tokens):
    body = {"model": "tiny", "prompt": program * 20, "max_tokens": tokens, "ignore_eos": True}
    headers = {"x-agentserving-program-id": program}
    async with session.post(sys.argv[1] + "/completions", json=body, headers=headers) as answer:
        result = await answer.json()
        assert answer.status == 200, result
        assert result["usage"]["completion_tokens"] == tokens, result
    return time.monotonic()

async def load(client, name):
    while True:
        try:
            return sum(getattr(each.load, name) for each in (await client.get_overview()).engines)
        except agentserving.AgentServingError as error:
            # vLLM has both cores of the node, and the control plane next to nothing.
            print(error, file=sys.stderr)
            await asyncio.sleep(0.5)

async def main():
    timeout = aiohttp.ClientTimeout(total=500)
    # Nothing on the node gets much time, its name server included.
    connector = aiohttp.TCPConnector(ttl_dns_cache=500)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
        agentserving.AsyncClient(sys.argv[2]) as client,
    ):
        before = await load(client, "preemptions_proactive")
        hogs = [asyncio.create_task(call(session, f"hog-{i % 2}", 2000)) for i in range(12)]
        while not (await load(client, "waiting") and await load(client, "demotions")):
            assert not all(hog.done() for hog in hogs), "the long calls ended before any waited"
            await asyncio.sleep(0.1)
        still_open = sum(not hog.done() for hog in hogs)
        newcomer = await call(session, "newcomer", 8)
        ends = await asyncio.gather(*hogs)
        after = await load(client, "preemptions_proactive")
    later = sum(end > newcomer for end in ends)
    print(json.dumps({"preemptions": after - before, "open": still_open, "ended_later": later}))

asyncio.run(main())
"""


@pytest.fixture
def real(operator: Kubectl) -> Iterator[Demo]:
    with real_vllm(NAMESPACE, {"maxSequences": 4}) as demo:
        yield demo


@pytest.mark.timeout(900)
def test_a_newcomer_preempts_long_calls_on_real_vllm(real: Demo) -> None:
    real.until_settled(READY_BOUND_S)
    result = json.loads(agents.python(real.kubectl, OVERLOAD, real.url, real.control_plane, bound_s=500))
    print(result)
    assert result["preemptions"] > 0
    # More than the four slots: in the order of arrival it would have waited for the others to begin.
    assert result["open"] > 4
    # Some may be about to end when it comes.
    assert result["ended_later"] >= result["open"] - 2
