"""Writes programs as trace files, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Iterable

from agentserving_replay.traces.file import CallLine, ProgramLine, RecordingLine, encoded
from agentserving_replay.traces.trace import Program


def trace_of(programs: Iterable[Program], *head: RecordingLine) -> bytes:
    """A trace of the programs, preceded by the line of a recording if one is given."""
    lines: list[RecordingLine | ProgramLine | CallLine] = [*head]
    for program in programs:
        lines.append(ProgramLine(program.program_id, program.arrival_s, program.name))
        lines += [
            CallLine(
                program=program.program_id,
                call=f"c{index}",
                prompt_tokens=call.prompt_tokens,
                output_tokens=call.output_tokens,
                after=[f"c{parent}" for parent in call.parents],
                gap_s=call.gap_s,
                extends=f"c{call.extends}" if call.extends >= 0 else "",
                shared_tokens=call.shared_tokens,
                thread=call.thread,
            )
            for index, call in enumerate(program.calls)
        ]
    return encoded(lines)
