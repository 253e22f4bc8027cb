"""A journal entry, and its bytes with a checksum. Pure."""

from __future__ import annotations

import zlib

import msgspec
from agentserving.contract.channel import CallRecord


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A terminal record, the boot of the engine that reported it, and its place in the journal."""

    seq: int
    boot_id: str
    record: CallRecord


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(CallRecord)


def encode(record: CallRecord) -> bytes:
    """CRC-32 of the body (4 bytes, big-endian), then the record as msgpack.

    SQLite has no checksums on database pages, so a flipped bit would otherwise be read as another number.
    """
    body = _encoder.encode(record)
    return zlib.crc32(body).to_bytes(4, "big") + body


def decode(data: bytes) -> CallRecord:
    """ValueError when the checksum is wrong or the body is no record."""
    body = data[4:]
    if zlib.crc32(body).to_bytes(4, "big") != data[:4]:
        raise ValueError("wrong checksum")
    return _decoder.decode(body)
