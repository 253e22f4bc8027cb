"""The part of the spec about headers in which clients name their programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agentserving.contract import program_headers as known

from agentserving_operator.spec.fields import Rule, text

_REFUSED = ", ".join(f"'{each}'" for each in known.REFUSED)
_PREFIXES = known.REFUSED_PREFIXES


def _allowed(member: str) -> str:
    return " && ".join((f"!({member} in [{_REFUSED}])", *(f"!{member}.startsWith('{each}')" for each in _PREFIXES)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramHeader:
    """A header of clients, and the one that names the parent of its program."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            _allowed("self.name"),
            "name cannot be a credential, or a header that has a meaning of its own",
            lambda h: known.may_name_programs(h.name),
            "name",
        ),
        Rule(
            f"!has(self.parent) || ({_allowed('self.parent')})",
            "parent cannot be a credential, or a header that has a meaning of its own",
            lambda h: h.parent is None or known.may_name_programs(h.parent),
            "parent",
        ),
    )

    name: str = text("Its name, in lower case.", known.MAX_NAME, min_length=1, pattern=known.NAME)
    parent: str | None = text(
        "Header with the program above it, in lower case; absent: programs have none.",
        known.MAX_NAME,
        default=None,
        min_length=1,
        pattern=known.NAME,
    )


IGNORED_ARE_KNOWN = Rule(
    f"self.ignoredProgramHeaders.all(h, h in [{', '.join(repr(each) for each in known.KNOWN)}])",
    f"ignoredProgramHeaders are those of known agents: {', '.join(known.KNOWN)}",
    lambda g: set(g.ignored_program_headers) <= set(known.KNOWN),
    "ignoredProgramHeaders",
)
