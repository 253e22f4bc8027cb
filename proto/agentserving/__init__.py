"""agentserving: the Python client, and the contract that the components share.

    import agentserving, openai

    agentserving.instrument()                        # every SDK on httpx carries the current program from now on
    with agentserving.program("triage") as p:        # or: async with
        openai.OpenAI().chat.completions.create(...)
        with p.tool_wait("search", expected_s=2):
            ...

Names are loaded when they are first used (PEP 562): the engine process imports `agentserving.contract.policy` and must
not load gRPC with it, and an agent that only sends headers does not need gRPC either.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from agentserving._version import __version__

if TYPE_CHECKING:
    from agentserving.client.aio import AsyncClient, AsyncGeneration
    from agentserving.client.blocking import Client, Generation
    from agentserving.client.values import (
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
    from agentserving.programs.httpx_hooks import attach, instrument, uninstrument
    from agentserving.programs.session import ProgramSession, ProgramThread, current_program, program
    from agentserving.transport.connection import Settings, Tls
    from agentserving.transport.errors import (
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

_HOMES = {
    "agentserving.client.aio": ("AsyncClient", "AsyncGeneration"),
    "agentserving.client.blocking": ("Client", "Generation"),
    "agentserving.transport.connection": ("Settings", "Tls"),
    "agentserving.transport.errors": (
        "AgentServingError", "AlreadyExistsError", "CancelledError", "ConflictError", "DeadlineExceededError",
        "GoneError", "InternalError", "InvalidArgumentError", "NotFoundError", "OverloadedError",
        "PermissionDeniedError", "UnavailableError",
    ),
    "agentserving.programs.httpx_hooks": ("attach", "instrument", "uninstrument"),
    "agentserving.programs.session": ("ProgramSession", "ProgramThread", "current_program", "program"),
    "agentserving.client.values": (
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
    "__version__",
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
