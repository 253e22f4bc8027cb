"""The file of a recording: whole programs as they end, and system prompts once all are known."""

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
    """A new file (FileExistsError). What has been written can be read, whenever the recorder is killed."""

    def __init__(self, path: Path, head: RecordingLine) -> None:
        self.path = path
        self._file = path.open("xb")
        self.write([head])

    def write(self, lines: Iterable[RecordingLine | ProgramLine | CallLine]) -> None:
        """Lines that belong together."""
        self._file.write(encoded(lines))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def settle_systems(path: Path) -> None:
    """Gives calls without a base their class's system prompt (sharing.py, rule 4), in a file that has its end.

    Until then such a call's line has what the engine found cached of it. The file is replaced as a whole.
    """
    found: dict[str, list[int]] = {}
    names: dict[str, str] = {}
    for fields in _lines(path):
        if "call" not in fields and "program" in fields:
            # Sub-agents of one name have their own system prompt, but in a replay they are threads of their root.
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
