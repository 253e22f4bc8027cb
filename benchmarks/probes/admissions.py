"""Probe: CPU of the control plane's core per admission and its end, in process, and of a write by group commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from agentserving.contract.signatures import signing_key

from benchmarks.probes.worker import answer_rounds, attribute

ADMISSIONS, PROGRAMS, WRITES = 1_500, 300, 5_000
_CORE = "agentserving_controlplane"
MemoryStore = attribute("MemoryStore", f"{_CORE}.store.memory", f"{_CORE}.memory_store")
GroupCommit = attribute("GroupCommit", f"{_CORE}.store.group_commit", f"{_CORE}.group_commit")
Write = attribute("Write", f"{_CORE}.store.port", f"{_CORE}.store")
ControlPlane = attribute("ControlPlane", f"{_CORE}.control_plane")
Balancer = attribute("Balancer", f"{_CORE}.engines.load_balancer", f"{_CORE}.load_balancer")

Admit = Callable[[str], Any]


def settings() -> Any:
    """Settings of a control plane on a memory store. Old ones have no defaults: other fields are empty or large."""
    known = {
        "ticket_keys": lambda: (signing_key(b"0123456789abcdef"),),
        "policy": "program-plas",
        "balancer": Balancer.PREFIX_AWARE,
    }
    try:
        return attribute("PlaneSettings", f"{_CORE}.settings")(**known)
    except AttributeError:
        settings_class = attribute("Settings", f"{_CORE}.settings")
        required = [field for field in fields(settings_class) if field.default is MISSING and field.name not in known]
        empty: dict[str, Any] = {"str": "", "int": 0, "float": 600.0, "tuple[str, ...]": ()}
        return settings_class(**known, **{field.name: empty[str(field.type)] for field in required})


def attach(plane: Any) -> None:
    """Makes two engines known as ready."""
    for engine_id in ("e0", "e1"):
        engine = plane.engines.ensure(engine_id)
        engine.boot_id, engine.address, engine.attached = "b", "127.0.0.1:1", True
        try:
            capabilities = attribute("Capabilities", f"{_CORE}.engines.facts")
            engine.health = attribute("Health", f"{_CORE}.engines.health").SERVING
        except ModuleNotFoundError:
            capabilities = attribute("EngineCapabilities", "agentserving.v1.types_pb2")
        engine.capabilities = capabilities(max_num_seqs=16, num_blocks=10_000, block_size=16)


def operations(plane: Any) -> tuple[Admit, Callable[[Any], None]]:
    """Admits a call of a program, and ends it as never started."""
    try:
        requests = attribute("AdmissionRequest", f"{_CORE}.table.admission_plan")
        end_of_call = attribute("EndOfCall", f"{_CORE}.call_ends", f"{_CORE}.calls")
        cancelled = attribute("Outcome", f"{_CORE}.table.states").CANCELLED
    except ModuleNotFoundError:
        pb, types = (attribute(f"{name}_pb2", "agentserving.v1") for name in ("call_service", "types"))
        return (
            lambda program: plane.admit(
                pb.AdmitCallRequest(program_id=program, implicit=True, prompt_tokens=500), "default"
            ),
            lambda admitted: plane.end_by_request(
                pb.EndCallRequest(
                    call_id=admitted.call_id, outcome=types.OUTCOME_CANCELLED, never_started=True
                ), "default"
            ),
        )  # fmt: skip
    return (
        lambda program: plane.calls.admit(
            requests(tenant="default", program_id=program, implicit=True, prompt_tokens=500)
        ),
        lambda admitted: getattr(plane, "ends", plane.calls).end(
            end_of_call(tenant="default", call_id=admitted.call_id, outcome=cancelled, never_started=True)
        ),
    )  # fmt: skip


async def admission_us() -> float:
    """CPU microseconds per admission and end, encoding of the rows and commits to the memory store included."""
    store = MemoryStore()
    plane = ControlPlane(settings(), store, await store.acquire("probe"), lambda error: None)
    plane.commits.start()
    attach(plane)
    admit, end = operations(plane)
    began = time.process_time()
    for number in range(ADMISSIONS):
        end(admit(f"p{number % PROGRAMS}"))
        if number % 100 == 99:
            await asyncio.sleep(0)
    await plane.commits.flush()
    took = time.process_time() - began
    await plane.commits.close()
    return 1e6 * took / ADMISSIONS


async def write_us() -> float:
    """CPU microseconds per write by group commit to the memory store."""
    store = MemoryStore()
    commits = GroupCommit(store, await store.acquire("probe"))
    commits.start()
    began = time.process_time()
    for number in range(WRITES):
        commits.put_together([Write(f"rows/{number % 1000}", b"x" * 500)])
        if number % 500 == 499:
            await asyncio.sleep(0)
    await commits.flush()
    took = time.process_time() - began
    await commits.close()
    return 1e6 * took / WRITES


def measure() -> dict[str, float]:
    return {
        "admission in process (us CPU)": asyncio.run(admission_us()),
        "group commit per write (us CPU)": asyncio.run(write_us()),
    }


if __name__ == "__main__":
    # The first round pays for imports and caches.
    measure()
    answer_rounds(measure)
