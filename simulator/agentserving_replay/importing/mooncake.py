"""Reads Mooncake's traces (kvcache-ai/Mooncake, FAST25-release): one request a line, with no programs and no ends.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, ..., 2354]}

`timestamp` is in milliseconds, a hash covers 512 tokens and all before them. A request continues the program of the
earlier one whose prompt it repeats whole (except the last block, which may not have been full), if that one has not
been continued yet; any other request begins a program. Blocks that it shares with programs before it are its class's
system prompt. When a call ended is not recorded: it is assumed to have decoded at `tokens_per_s`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from agentserving_replay.importing.errors import ImportFailedError, checked_seconds, checked_tokens
from agentserving_replay.importing.hashes import Blocks, check_length, shared_tokens
from agentserving_replay.traces.file import CallLine, ProgramLine

BLOCK_SIZE = 512


class _Row(msgspec.Struct, kw_only=True):
    """A line; unknown fields are ignored."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


@dataclass(slots=True, kw_only=True)
class _Prompt:
    """The last prompt of a program. `call`: its number in the program."""

    program: str
    call: int
    full_blocks: int
    tokens: int
    end_s: float
    continued: bool = False


_decoder = msgspec.json.Decoder(_Row)


def read(lines: Iterable[bytes], tokens_per_s: float) -> Iterator[list[ProgramLine | CallLine]]:
    """The lines of each request, in the order of the file. ImportFailedError."""
    blocks, prompts = Blocks(BLOCK_SIZE), list[_Prompt]()
    last_s = 0.0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            row = _decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise ImportFailedError(where, str(error)) from error
        start_s = checked_seconds(where, "timestamp", row.timestamp / 1000)
        if start_s < last_s:
            raise ImportFailedError(where, f"timestamp: {row.timestamp:g} is before the line above")
        last_s = start_s
        prompt = checked_tokens(where, "input_length", row.input_length, 1)
        output = max(1, checked_tokens(where, "output_length", row.output_length, 0))
        check_length(where, row.hash_ids, prompt, BLOCK_SIZE)
        found, count = blocks.add(where, len(prompts), row.hash_ids)
        before = prompts[found] if found >= 0 else None
        now = _Prompt(
            program=f"p{number}",
            call=0,
            full_blocks=prompt // BLOCK_SIZE,
            tokens=prompt,
            end_s=start_s + output / tokens_per_s,
        )
        prompts.append(now)
        if before is not None and not before.continued and count >= max(1, before.full_blocks):
            yield [_continued(now, before, count, prompt, output, start_s)]
        else:
            shared = shared_tokens(count, BLOCK_SIZE, prompt, prompt)
            # Programs of one class share exactly this prefix, which its last block identifies.
            name = f"prefix-{row.hash_ids[count - 1]}" if shared else ""
            yield [
                ProgramLine(now.program, start_s, name),
                CallLine(
                    program=now.program, call="c0", prompt_tokens=prompt, output_tokens=output, shared_tokens=shared
                ),
            ]


def _continued(now: _Prompt, before: _Prompt, count: int, prompt: int, output: int, start_s: float) -> CallLine:
    before.continued = True
    now.program, now.call = before.program, before.call + 1
    shared = shared_tokens(count, BLOCK_SIZE, prompt, before.tokens)
    return CallLine(
        program=now.program,
        call=f"c{now.call}",
        prompt_tokens=prompt,
        output_tokens=output,
        after=[f"c{before.call}"],
        gap_s=round(max(0.0, start_s - before.end_s), 6),
        extends=f"c{before.call}" if shared else "",
        shared_tokens=shared,
    )
