"""Identifiers as types, so that mypy tells a program from a call, an engine or a tenant.

A program is known by its tenant and its id together (`ProgramKey`): two tenants may use one id, and nothing between the
gateway and the engine may take them for one program.
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
