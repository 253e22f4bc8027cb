"""Reader of the journal's first format: append-only segments of frames ``length(4) crc32(4) body``.

Versions up to 0.1 wrote it. A directory in this format is read once, when it is migrated.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
from agentserving.contract.channel import CallRecord

from agentserving_sidecar.journal.entries import Entry

FORMAT = 1


class _Record(msgspec.Struct, array_like=True):
    """`CallRecord` as it was then; promotions, demotions and first_token_us have gone since."""

    call_id: str
    attempt: int
    program_id: str
    root_program_id: str
    tenant: str
    thread_id: str
    attained_service_us: int
    service_us: int = 0
    wait_us: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    promotions: int = 0
    demotions: int = 0
    level: int = 0
    running: bool = False
    outcome: str = ""
    first_token_us: int = 0


class _Entry(msgspec.Struct, array_like=True):
    seq: int
    boot_id: str
    record: _Record


class Contents(msgspec.Struct, kw_only=True):
    """`last_seq`: highest number ever given out, as far as it can be seen. `corrupt`: frames that cannot be read."""

    entries: list[Entry]
    last_seq: int
    corrupt: int


_decoder = msgspec.msgpack.Decoder(_Entry)


def _segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.seg"))


def read(directory: Path) -> Contents | None:
    """Unacknowledged entries in order of seq; None when the directory holds no files of this format."""
    segments, mark = _segments(directory), directory / "ACKED"
    if not segments and not mark.exists():
        return None
    try:
        acked = int(mark.read_text().strip() or 0)
    except (FileNotFoundError, ValueError):
        acked = 0
    contents = Contents(entries=[], last_seq=acked, corrupt=0)
    for path in segments:
        for entry in _entries(path, contents):
            contents.last_seq = max(contents.last_seq, entry.seq)
            if entry.seq > acked:
                contents.entries.append(entry)
    return contents


def _entries(path: Path, contents: Contents) -> Iterator[Entry]:
    """A torn frame at the end is what a kill leaves; a wrong checksum before that is corruption."""
    data, at = path.read_bytes(), 0
    while at + 8 <= len(data):
        size, checksum = int.from_bytes(data[at : at + 4], "big"), int.from_bytes(data[at + 4 : at + 8], "big")
        body = data[at + 8 : at + 8 + size]
        if len(body) < size:
            return
        try:
            if zlib.crc32(body) != checksum:
                raise ValueError("wrong checksum")
            old = _decoder.decode(body)
        except (ValueError, msgspec.MsgspecError):
            contents.corrupt += 1
            return
        at += 8 + size
        shared = {name: getattr(old.record, name) for name in CallRecord.__struct_fields__ if hasattr(old.record, name)}
        yield Entry(seq=old.seq, boot_id=old.boot_id, record=CallRecord(**shared))


def remove(directory: Path) -> None:
    """Removes the files of this format, the acknowledgement mark last: without it every entry would be sent again."""
    for path in _segments(directory):
        path.unlink()
    (directory / "ACKED").unlink(missing_ok=True)
