"""Lines of the audit log: found in logs, chosen, ordered. Pure; docs/security.md has the fields."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration(text: str) -> timedelta:
    """`90s`, `15m`, `1h` or `2d`. ValueError."""
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS or not number.isascii() or not number.isdigit() or len(number) > 6:
        raise ValueError(f"{text!r} is no duration: write 90s, 15m, 1h or 2d")
    return timedelta(**{UNITS[unit]: int(number)})


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One change or refusal; `fields` is the line as it was written."""

    when: datetime
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """A field; empty when it is missing."""
        return str(self.fields.get(name, ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to show; empty = everything."""

    since: datetime
    tenant: str = ""
    who: str = ""
    refused: bool = False

    def has(self, line: AuditLine) -> bool:
        """True for a line that is wanted."""
        return (
            line.when >= self.since
            and self.tenant in ("", line.text("tenant"))
            and self.who in ("", line.text("who"))
            and (not self.refused or line.text("outcome") != "OK")
        )


def read(lines: Iterable[str]) -> Iterator[AuditLine]:
    """The audit lines of a log. What else is in it, a prefix of a line and a line cut short included, is no error."""
    for text in lines:
        if '"audit"' not in text:
            continue
        try:
            fields = json.loads(text[text.index("{") :])
            when = datetime.fromisoformat(fields["timestamp"])
        except (ValueError, KeyError, TypeError):
            continue
        if fields.get("event") == "audit" and when.tzinfo is not None:
            yield AuditLine(when, fields)


def chosen(lines: Iterable[AuditLine], wanted: Wanted) -> list[AuditLine]:
    """The wanted lines of several logs, oldest first."""
    return sorted(filter(wanted.has, lines), key=lambda line: line.when)
