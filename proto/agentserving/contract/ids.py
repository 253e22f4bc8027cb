"""Identifiers as types, so that mypy distinguishes programs, calls, engines and tenants.

A program is identified by its tenant and its id together (`ProgramKey`): two tenants may use the same id, and their
programs must stay separate everywhere from the gateway to the engine.
"""

from __future__ import annotations

from typing import NamedTuple, NewType

Tenant = NewType("Tenant", str)
ProgramId = NewType("ProgramId", str)
CallId = NewType("CallId", str)
EngineId = NewType("EngineId", str)


class ProgramKey(NamedTuple):
    """The key of a program in the process table, the load balancer, the engines' accounts and their pauses."""

    tenant: Tenant
    program_id: ProgramId
