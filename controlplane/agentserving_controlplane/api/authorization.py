"""Who may call what: every RPC of the control plane with the roles that may use it. Pure; denies by default.

tests/controlplane/test_authorization.py compares the table with the services' descriptors, so an RPC that is not listed
fails the tests before anyone can call it, and is denied to everyone if it gets here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from agentserving.contract.identity import Caller, Role

from agentserving_controlplane.errors import NotAllowedError


class Port(enum.Enum):
    """Where an RPC came in."""

    # Clients, with keys.
    CLIENTS = "clients"
    # The parts of the cluster, the operator and administrators.
    PARTS = "parts"
    # One port for both.
    SHARED = "shared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The rule of one RPC."""

    roles: frozenset[Role]
    # Served on the clients' port.
    for_clients: bool = False
    # Each use is written to the audit log, not only refusals. Calls are not: they are too many, and endings list them.
    audited: bool = False


def _rule(*roles: Role, for_clients: bool = False, audited: bool = False) -> Access:
    return Access(roles=frozenset(roles), for_clients=for_clients, audited=audited)


_CLIENT = (Role.CLIENT, Role.ADMIN)
_ADMIN = (Role.ADMIN, Role.OPERATOR)
_OWN = _rule(*_CLIENT, for_clients=True)
_OWN_CHANGE = _rule(*_CLIENT, for_clients=True, audited=True)
_READ = _rule(*_ADMIN)
_CHANGE = _rule(*_ADMIN, audited=True)

RULES: dict[str, dict[str, Access]] = {
    "ProgramService": {
        "OpenProgram": _OWN_CHANGE,
        "CloseProgram": _OWN_CHANGE,
        "GetProgram": _OWN,
        "ListPrograms": _OWN,
        "WatchPrograms": _OWN,
        "CancelProgram": _OWN_CHANGE,
        "PauseProgram": _OWN_CHANGE,
        "ResumeProgram": _OWN_CHANGE,
        "BeginToolWait": _OWN,
        "EndToolWait": _OWN,
        "GetTrace": _OWN,
    },
    "CallService": {
        "AdmitCall": _OWN,
        "EndCall": _OWN,
        "Admissions": _rule(Role.GATEWAY),
        "WatchEndings": _OWN,
        # The sidecar's: here it answers UNIMPLEMENTED.
        "Generate": _OWN,
    },
    "StreamService": {"GetStreams": _rule(Role.GATEWAY, Role.SIDECAR)},
    "EngineService": {"Attach": _rule(Role.SIDECAR, audited=True)},
    "AdminService": {
        "ApplyPolicy": _CHANGE,
        "GetPolicy": _READ,
        "ListEngines": _READ,
        "DrainEngine": _CHANGE,
        "UndrainEngine": _CHANGE,
        "GetOverview": _READ,
        "GetDemand": _READ,
    },
    "KeyService": {
        "CreateKey": _CHANGE,
        "ListKeys": _READ,
        "RevokeKey": _CHANGE,
        "WatchKeys": _rule(Role.GATEWAY),
    },
    "TenantService": {
        "SetTenant": _CHANGE,
        "ListTenants": _READ,
        "RemoveTenant": _CHANGE,
    },
}

_PACKAGE = "/agentserving.v1."
_UNTICKETED = _rule()
# By the path of gRPC: /agentserving.v1.ProgramService/OpenProgram.
_BY_PATH = {
    f"{_PACKAGE}{service}/{name}": access for service, methods in RULES.items() for name, access in methods.items()
}


def access_to(path: str) -> Access:
    """The rule of an RPC; one that permits no role for an RPC that is not in the table."""
    return _BY_PATH.get(path, _UNTICKETED)


def short(path: str) -> str:
    """An RPC as people write it: ProgramService.OpenProgram."""
    return path.removeprefix(_PACKAGE).replace("/", ".")


def not_allowed(caller: Caller, path: str, port: Port) -> NotAllowedError:
    """The refusal of a caller who may not use an RPC on this port."""
    access = access_to(path)
    if port is Port.CLIENTS and not access.for_clients:
        text = f"{short(path)} is not served on the clients' port: use the port of the cluster's parts"
    else:
        allowed = ", ".join(sorted(access.roles)) or "no role"
        text = f"role {caller.role} may not use {short(path)}; allowed: {allowed}"
    return NotAllowedError("NOT_ALLOWED", text)
