"""Reports that the control plane has not acknowledged, on disk.

Append-only segments of frames ``length(4) crc32(4) body``; a body is msgpack. Only terminal records are
kept: the others are out of date by the next one. A torn tail, as SIGKILL leaves it, is cut off; a frame whose
checksum is wrong ends its segment and is counted. Segments whose records are all acknowledged are removed.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path

import msgspec
from agentserving.contract.channel import CallRecord

FORMAT = 1
SEGMENT_BYTES = 4 << 20
DEFAULT_LIMIT_BYTES = 256 << 20

_encoder = msgspec.msgpack.Encoder()


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """A terminal record and the boot of the engine that told it."""

    seq: int
    boot_id: str
    record: CallRecord


_decoder = msgspec.msgpack.Decoder(Entry)


class JournalFullError(Exception):
    """The limit is reached: the plugin keeps further records until there is room."""


class NewerFormatError(Exception):
    """The directory was written by a newer version."""


class Journal:
    """Unacknowledged terminal records in order of their seq."""

    def __init__(self, directory: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._directory = directory
        self._limit = limit_bytes
        self.unacked: OrderedDict[int, Entry] = OrderedDict()
        self._segments: OrderedDict[Path, int] = OrderedDict()
        self._bytes = 0
        self.corrupt_frames = 0
        directory.mkdir(parents=True, exist_ok=True)
        self._check_format()
        self.next_seq = self._recover()
        self._open_segment()

    def _check_format(self) -> None:
        marker = self._directory / "FORMAT"
        if marker.exists():
            found = int(marker.read_text().strip() or 0)
            if found > FORMAT:
                raise NewerFormatError(
                    f"{self._directory} has journal format {found}, this version reads up to {FORMAT}: upgrade, or use "
                    "another --state-dir"
                )
        else:
            marker.write_text(f"{FORMAT}\n")

    def _acked_path(self) -> Path:
        return self._directory / "ACKED"

    def _recover(self) -> int:
        acked = 0
        if self._acked_path().exists():
            acked = int(self._acked_path().read_text().strip() or 0)
        last = acked
        for path in sorted(self._directory.glob("*.seg")):
            highest = 0
            for entry in self._read(path):
                highest = max(highest, entry.seq)
                if entry.seq > acked:
                    self.unacked[entry.seq] = entry
            last = max(last, highest)
            self._segments[path] = highest
            self._bytes += path.stat().st_size
        self._acked = acked
        self._drop_old()
        return last + 1

    def _read(self, path: Path) -> list[Entry]:
        data = path.read_bytes()
        entries: list[Entry] = []
        at = 0
        while at + 8 <= len(data):
            size, checksum = int.from_bytes(data[at : at + 4], "big"), int.from_bytes(data[at + 4 : at + 8], "big")
            body = data[at + 8 : at + 8 + size]
            if len(body) < size:
                break
            if zlib.crc32(body) != checksum:
                self.corrupt_frames += 1
                break
            entries.append(_decoder.decode(body))
            at += 8 + size
        return entries

    def _open_segment(self) -> None:
        self._path = self._directory / f"{self.next_seq:020d}.seg"
        # A file of that name can hold only a torn tail: what follows one is unreadable, so it goes.
        self._bytes -= self._path.stat().st_size if self._path.exists() else 0
        self._file = self._path.open("wb")
        self._segments[self._path] = self.next_seq - 1

    @property
    def last_unacked(self) -> int:
        """Highest seq that is not acknowledged; 0 when all are."""
        return next(reversed(self.unacked), 0)

    def append(self, boot_id: str, records: list[CallRecord]) -> list[Entry]:
        """Puts records on disk; when it returns they survive SIGKILL and power loss. JournalFullError when full."""
        if self._bytes > self._limit:
            raise JournalFullError(f"{self._bytes} bytes unacknowledged, the limit is {self._limit}")
        entries = [Entry(self.next_seq + i, boot_id, record) for i, record in enumerate(records)]
        data = b"".join(_frame(entry) for entry in entries)
        self._file.write(data)
        self._file.flush()
        os.fdatasync(self._file.fileno())
        self._bytes += len(data)
        for entry in entries:
            self.unacked[entry.seq] = entry
        self.next_seq += len(entries)
        self._segments[self._path] = self.next_seq - 1
        if self._file.tell() > SEGMENT_BYTES:
            self._file.close()
            self._open_segment()
        return entries

    def ack(self, seq: int) -> None:
        """Everything up to `seq` is durable elsewhere."""
        if seq <= self._acked:
            return
        self._acked = seq
        while self.unacked and next(iter(self.unacked)) <= seq:
            self.unacked.popitem(last=False)
        # Not synced: an older mark only makes us send again what nobody will count twice.
        self._acked_path().write_text(f"{seq}\n")
        self._drop_old()

    def _drop_old(self) -> None:
        for path, highest in list(self._segments.items()):
            if highest <= self._acked and path != getattr(self, "_path", None):
                self._bytes -= path.stat().st_size
                path.unlink()
                del self._segments[path]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _frame(entry: Entry) -> bytes:
    body = _encoder.encode(entry)
    return len(body).to_bytes(4, "big") + zlib.crc32(body).to_bytes(4, "big") + body
