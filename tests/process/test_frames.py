"""Frames: whatever way their bytes arrive they are the same frames, and bytes that are none end the connection."""

from __future__ import annotations

import itertools

import pytest
from agentserving_process.frames.codec import (
    PREFACE,
    BrokenFrameError,
    Decoder,
    Frame,
    FrameTooLargeError,
    Kind,
    encoded,
)
from hypothesis import given
from hypothesis import strategies as st

FRAMES = st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=300)), max_size=8)


def parts_of(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(at)]


def feed_all(decoder: Decoder, parts: list[bytes]) -> list[Frame]:
    return [frame for part in parts for frame in decoder.feed(part)]


@given(frames=FRAMES, cuts=st.lists(st.integers(min_value=0), max_size=12), is_server=st.booleans())
def test_frames_arrive_as_they_were_sent_however_they_are_cut(
    frames: list[Frame], cuts: list[int], is_server: bool
) -> None:
    decoder = Decoder(300, max_opening_bytes=300 if is_server else 0)
    data = (PREFACE if is_server else b"") + b"".join(encoded(kind, payload) for kind, payload in frames)
    assert feed_all(decoder, parts_of(data, cuts)) == frames


@given(data=st.binary(min_size=1, max_size=100), cuts=st.lists(st.integers(min_value=0), max_size=5))
def test_whatever_does_not_begin_with_the_preface_is_refused(data: bytes, cuts: list[int]) -> None:
    decoder = Decoder(100, max_opening_bytes=100)
    if PREFACE.startswith(data[: len(PREFACE)]):
        return
    with pytest.raises(BrokenFrameError):
        feed_all(decoder, parts_of(data, cuts))


@pytest.mark.parametrize("head", [b"\0\0\0\0\2", b"\0\0\0\1\0", b"\0\0\0\1\6", b"\0\0\0\1\xff"])
def test_an_empty_frame_and_a_frame_of_an_unknown_kind_are_refused(head: bytes) -> None:
    with pytest.raises(BrokenFrameError):
        Decoder(100).feed(head)


def test_a_frame_that_is_too_long_is_refused_before_it_is_received() -> None:
    Decoder(100).feed(encoded(Kind.MESSAGE, b"x" * 100))
    with pytest.raises(FrameTooLargeError, match="101 bytes; at most 100"):
        Decoder(100).feed(encoded(Kind.MESSAGE, b"x" * 101)[:5])


def test_the_opening_has_a_limit_of_its_own() -> None:
    decoder = Decoder(100, max_opening_bytes=10)
    opening, message = encoded(Kind.OPENING, b"x" * 10), encoded(Kind.MESSAGE, b"x" * 100)
    assert len(decoder.feed(PREFACE + opening + message)) == 2
    with pytest.raises(FrameTooLargeError, match="at most 10"):
        Decoder(100, max_opening_bytes=10).feed(PREFACE + message)
