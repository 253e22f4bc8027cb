"""Writes the file of a recording: complete programs as they end, then system prompts once all calls are known."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from agentserving_replay.traces.file import CallLine, ProgramLine, RecordingLine, encoded
from agentserving_replay.traces.sharing import of_system, system_tokens


class TraceWriter:
    """Creates a file (FileExistsError). The file is readable at any time, even after the recorder was killed."""

    def __init__(self, path: Path, head: RecordingLine) -> None:
        self.path = path
        self._file = path.open("xb")
        self.write([head])

    def write(self, lines: Iterable[RecordingLine | ProgramLine | CallLine]) -> None:
        """Appends the lines of one tree."""
        self._file.write(encoded(lines))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def settle_systems(path: Path) -> None:
    """Sets the shared tokens of calls without a base to their class's system prompt (sharing.py, rule 4).

    Until then the line of such a call has its cached tokens. The file must be complete; it is replaced atomically.
    """
    found: dict[str, list[int]] = {}
    names: dict[str, str] = {}
    for fields in _lines(path):
        if "call" not in fields and "program" in fields:
            # Sub-agents have a system prompt of their own, but in a replay they are threads of their root.
            names[fields["program"]] = names[fields["parent"]] if "parent" in fields else fields.get("name", "")
        elif "call" in fields and "extends" not in fields:
            found.setdefault(names[fields["program"]], []).append(fields.get("shared_tokens", 0))
    systems = {name: system_tokens(counts) for name, counts in found.items()}
    settled = path.with_name(f".{path.name}.settling")
    with settled.open("wb") as file:
        for fields in _lines(path):
            if "call" in fields and "extends" not in fields:
                name, prompt = names[fields["program"]], fields["prompt_tokens"]
                fields["shared_tokens"] = of_system(
                    fields.get("shared_tokens", 0), prompt, systems[name], named=bool(name)
                )
            file.write(msgspec.json.encode(fields) + b"\n")
    os.replace(settled, path)


def _lines(path: Path) -> Iterable[dict]:  # type: ignore[type-arg]
    with path.open("rb") as lines:
        for line in lines:
            yield msgspec.json.decode(line)
