"""Bytes to frames and back, as stream_service.proto describes them. Pure."""

from __future__ import annotations

import enum
import struct

# What a client sends first. A peer that speaks anything else is refused after eight bytes.
PREFACE = b"AGSTRM1\n"
_HEAD = struct.Struct(">IB")
# The kind is part of a frame's length.
_KIND_BYTES = 1


class Kind(enum.IntEnum):
    """What a frame carries."""

    OPENING = 1
    MESSAGE = 2
    END = 3
    STATUS = 4
    BEAT = 5


class BrokenFrameError(Exception):
    """The peer sent bytes that are no frame."""


class FrameTooLargeError(BrokenFrameError):
    """The peer sent a frame that is longer than permitted."""


Frame = tuple[Kind, bytes]
_KINDS = {int(kind): kind for kind in Kind}


def encoded(kind: Kind, payload: bytes = b"") -> bytes:
    """A frame as it is sent."""
    return _HEAD.pack(len(payload) + _KIND_BYTES, kind) + payload


class Decoder:
    """Collects what was received."""

    def __init__(self, max_bytes: int, *, max_opening_bytes: int = 0) -> None:
        """`max_bytes` bounds the payload of a frame. `max_opening_bytes`, unless it is 0: PREFACE comes first, and then
        a frame of at most this size."""
        self._max_bytes, self._limit = max_bytes, max_opening_bytes or max_bytes
        preface = max_opening_bytes > 0
        self._rest = bytearray()
        # Fewer bytes than this complete no frame, so that a long frame is not examined with each part of it.
        self._needed = len(PREFACE) if preface else _HEAD.size
        self._preface = preface

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete. BrokenFrameError, after which nothing more can be decoded."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        at = 0
        if self._preface:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise BrokenFrameError("the peer does not speak this protocol")
            if len(data) < len(PREFACE):
                self._rest += data
                return []
            self._preface, at = False, len(PREFACE)
        frames, at = self._frames(data, at)
        if at < len(data):
            self._rest += data[at:]
        return frames

    def _frames(self, data: bytes, at: int) -> tuple[list[Frame], int]:
        """All complete frames from `at` on, and where the incomplete one begins."""
        frames: list[Frame] = []
        while len(data) - at >= _HEAD.size:
            length, number = _HEAD.unpack_from(data, at)
            kind = _KINDS.get(number)
            if length < _KIND_BYTES or kind is None:
                raise BrokenFrameError(f"a frame of kind {number} and {length} bytes")
            if length - _KIND_BYTES > self._limit:
                raise FrameTooLargeError(f"a message of {length - _KIND_BYTES} bytes; at most {self._limit} are read")
            end = at + _HEAD.size - _KIND_BYTES + length
            if end > len(data):
                self._needed = end - at
                return frames, at
            frames.append((kind, data[at + _HEAD.size : end]))
            at, self._limit = end, self._max_bytes
        self._needed = _HEAD.size
        return frames, at
