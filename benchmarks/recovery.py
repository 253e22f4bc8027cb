"""``python -m benchmarks.recovery ENDPOINT PREFIX``: recovers a control plane in a fresh process; prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import psutil
import structlog
from agentserving.contract.signatures import signing_key
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_controlplane.settings import PlaneSettings
from agentserving_controlplane.store.etcd.store import EtcdStore


def settings() -> PlaneSettings:
    """Settings of a control plane that serves nothing and only reads its store."""
    return PlaneSettings(ticket_keys=lambda: (signing_key(b"0123456789abcdef"),), balancer=Balancer.LEAST_USED)


async def recover(endpoint: str, prefix: str) -> dict[str, float]:
    """Seconds of the recovery, calls in flight afterwards, and MiB of resident memory that it added."""
    before = psutil.Process().memory_info().rss
    store = EtcdStore((endpoint,), prefix)
    began = time.perf_counter()
    plane = ControlPlane(settings(), store, await store.acquire("bench"), lambda error: None)
    await plane.recover(store)
    seconds = time.perf_counter() - began
    grown = psutil.Process().memory_info().rss - before
    await plane.commits.close()
    await store.close()
    return {"seconds": seconds, "calls": plane.table.open_calls, "rss_mb": grown / 2**20}


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    print(json.dumps(asyncio.run(recover(*sys.argv[1:]))))
