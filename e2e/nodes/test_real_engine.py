"""Real vLLM (on the CPU, a tiny random model) in an engine pod, with the plugin: a preemption inside Kubernetes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from kube import agents
from kube.demo import Demo
from kube.kubectl import Kubectl

NAMESPACE = "e2e-vllm"
READY_BOUND_S = 420.0
# In the agents' pod: long calls of two programs fill the engine and its queue, then a newcomer asks for little.
# Cores of vLLM's threads.
BIND = "VLLM_CPU_OMP_THREADS_BIND"
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


def volume(models: str) -> list[dict[str, Any]]:
    """The machine's directory with vLLM and the model, as a claim: how a cluster gives models to its engines."""
    size, modes = {"storage": "20Gi"}, ["ReadWriteMany"]
    return [
        {
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "e2e-models"},
            "spec": {
                "capacity": size, "accessModes": modes, "storageClassName": "e2e-models",
                "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": models, "type": "Directory"},
            },
        },
        {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"},
            "spec": {
                "accessModes": modes, "storageClassName": "e2e-models", "volumeName": "e2e-models",
                "resources": {"requests": size},
            },
        },
    ]  # fmt: skip


def cluster(image: str) -> dict[str, Any]:
    """One engine with four slots, no accelerator."""
    engine = {
        "type": "VLLM", "image": image, "maxSequences": 4, "drainSeconds": 10, "startupSeconds": 400,
        "accelerator": {"count": 0, "products": [], "tolerations": []}, "sharedMemory": "1Gi",
        "extraArgs": ["--load-format", "dummy", "--enforce-eager", "--dtype", "float32"],
        # All of vLLM's processes together have one core: with more they starve the others of a node of two, and a
        # newcomer that the control plane has no time to admit waits behind all.
        "resources": {"requests": {"cpu": "200m", "memory": "2Gi"}, "limits": {"cpu": "1"}},
        "template": {"spec": {"containers": [{"name": "engine", "env": [{"name": BIND, "value": "0"}]}]}},
    }  # fmt: skip
    model = {
        "name": "/models/tiny-llama-1", "servedName": "tiny", "maxLength": 8192,
        "cache": {"type": "ExistingClaim", "claimName": "models"},
    }  # fmt: skip
    spec = {"model": model, "engine": engine, "scheduling": {"policy": "atlas"}, "store": {"type": "Memory"}}
    # Next to the demo, on a node of two cores.
    little = {"resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}
    kind = {"apiVersion": "agentserving.io/v1alpha1", "kind": "AgentServingCluster", "metadata": {"name": "demo"}}
    return {
        **kind,
        "spec": {**spec, "tls": {"issuer": "None"}, "controlPlane": little, "gateway": little | {"drainSeconds": 0}},
    }


@pytest.fixture
def real(operator: Kubectl) -> Iterator[Demo]:
    models, image = os.environ.get("E2E_MODELS"), os.environ.get("E2E_ENGINE_IMAGE")
    if not models or not image:
        pytest.skip("no CPU vLLM for engine pods: CLUSTER=bare has it after `make test` has made the environment")
    kubectl = Kubectl(NAMESPACE)
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    try:
        kubectl.apply(*volume(models), cluster(image), agents.pod())
        kubectl("wait", "--for=condition=Ready", f"pod/{agents.NAME}", "--timeout=1m")
        yield Demo(kubectl)
    finally:
        kubectl("delete", "asc/demo", "--ignore-not-found")
        kubectl("delete", "namespace", NAMESPACE, "--wait=true")
        kubectl("delete", "pv", "e2e-models", "--ignore-not-found")


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
