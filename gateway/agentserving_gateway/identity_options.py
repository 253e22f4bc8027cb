"""Options about the headers that name programs: Envoy and the picker need the same."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving.contract.program_headers import ProgramHeader, read_ignored, read_program_headers
from agentserving_process.options import option

from agentserving_gateway import identity


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityOptions:
    """Headers that name programs"""

    program_headers: tuple[ProgramHeader, ...] = option(
        (),
        "headers of your clients that name programs, looked for before those of known agents: NAME or NAME:PARENT, "
        "separated by commas; the front and the picker need the same",
        read=read_program_headers,
    )
    ignored_program_headers: tuple[str, ...] = option(
        (),
        "headers of known agents that name no programs here, separated by commas; the front and the picker need the "
        "same",
        read=read_ignored,
    )

    def sources(self) -> tuple[ProgramHeader, ...]:
        """In the order in which they are looked for."""
        return identity.sources(self.program_headers, self.ignored_program_headers)
