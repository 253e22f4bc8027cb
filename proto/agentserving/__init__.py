"""agentserving: the Python client, and the contract that the components share.

    import agentserving, openai

    agentserving.instrument()                        # every SDK on httpx carries the current program from now on
    with agentserving.program("triage") as p:        # or: async with
        openai.OpenAI().chat.completions.create(...)
        with p.tool_wait("search", expected_s=2):
            ...

Names are loaded when they are first used (PEP 562): the engine process imports `agentserving.policy` and must not load
gRPC with it, and an agent that goes by headers alone does not need gRPC either.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentserving.async_client import AsyncClient, AsyncGeneration
    from agentserving.client import Client, Generation
    from agentserving.connection import Settings, Tls
    from agentserving.errors import (
        AgentServingError,
        AlreadyExistsError,
        CancelledError,
        ConflictError,
        DeadlineExceededError,
        GoneError,
        InternalError,
        InvalidArgumentError,
        NotFoundError,
        OverloadedError,
        PermissionDeniedError,
        UnavailableError,
    )
    from agentserving.httpx_hooks import attach, instrument, uninstrument
    from agentserving.session import ProgramSession, ProgramThread, current_program, program
    from agentserving.values import (
        Admission,
        Balancer,
        Call,
        ClosedProgram,
        EndedCall,
        Endings,
        Engine,
        EngineState,
        Outcome,
        Overview,
        PolicyVersion,
        Program,
        ProgramChanges,
        ProgramOrigin,
        ProgramState,
        Thread,
    )

_HOMES = {
    "agentserving.async_client": ("AsyncClient", "AsyncGeneration"),
    "agentserving.client": ("Client", "Generation"),
    "agentserving.connection": ("Settings", "Tls"),
    "agentserving.errors": (
        "AgentServingError", "AlreadyExistsError", "CancelledError", "ConflictError", "DeadlineExceededError",
        "GoneError", "InternalError", "InvalidArgumentError", "NotFoundError", "OverloadedError",
        "PermissionDeniedError", "UnavailableError",
    ),
    "agentserving.httpx_hooks": ("attach", "instrument", "uninstrument"),
    "agentserving.session": ("ProgramSession", "ProgramThread", "current_program", "program"),
    "agentserving.values": (
        "Admission", "Balancer", "Call", "ClosedProgram", "EndedCall", "Endings", "Engine", "EngineState", "Outcome",
        "Overview", "PolicyVersion", "Program", "ProgramChanges", "ProgramOrigin", "ProgramState", "Thread",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - by module, as above
    "AsyncClient", "AsyncGeneration", "Client", "Generation", "Settings", "Tls",
    "AgentServingError", "AlreadyExistsError", "CancelledError", "ConflictError", "DeadlineExceededError", "GoneError",
    "InternalError", "InvalidArgumentError", "NotFoundError", "OverloadedError", "PermissionDeniedError",
    "UnavailableError",
    "attach", "instrument", "uninstrument", "ProgramSession", "ProgramThread", "current_program", "program",
    "Admission", "Balancer", "Call", "ClosedProgram", "EndedCall", "Endings", "Engine", "EngineState", "Outcome",
    "Overview", "PolicyVersion", "Program", "ProgramChanges", "ProgramOrigin", "ProgramState", "Thread",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
