"""Calls and programs of one tenant, for tests of the policy."""

from __future__ import annotations

from typing import Any

from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving_engine.policy import CallFacts


def program(name: str, tenant: str = "default") -> ProgramKey:
    return ProgramKey(Tenant(tenant), ProgramId(name))


def call(key: str, program_id: str = "", attained_us: int = 0, *, arrival_us: int = 0, **more: Any) -> CallFacts:
    """A call of a program, by default of its own, which has attained so much."""
    return CallFacts(
        key, program(program_id or key), attained_service_us=attained_us, program_arrival_us=arrival_us, **more
    )
