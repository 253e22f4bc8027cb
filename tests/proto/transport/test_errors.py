"""A gRPC error becomes one of ours whatever its status, message and trailers are."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from agentserving.transport.errors import (
    AgentServingError,
    InternalError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
    from_rpc,
    hint_of,
)
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

TRAILER = "grpc-status-details-bin"


class SyncError(grpc.RpcError):
    """What the blocking API raises: an error that is also a call."""

    def __init__(self, code: Any, details: Any, trailers: Any) -> None:
        self._code, self._details, self._trailers = code, details, trailers

    def code(self) -> Any:
        return self._code

    def details(self) -> Any:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailers


def error_with(
    trailer: bytes, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, *, is_async: bool = False
) -> grpc.RpcError:
    if is_async:
        metadata = grpc.aio.Metadata((TRAILER, trailer))
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, "try later")
    return SyncError(code, "try later", ((TRAILER, trailer),))


def packed(message: Any) -> AnyMessage:
    found = AnyMessage()
    found.Pack(message)
    return found


def status(*details: AnyMessage, code: int = code_pb2.UNAVAILABLE) -> bytes:
    return bytes(status_pb2.Status(code=code, message="try later", details=details).SerializeToString())


INFO = error_details_pb2.ErrorInfo(reason="NOT_LEADER", metadata={"leader": "10.0.0.7:7070"})
RETRY = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2))
VIOLATION = error_details_pb2.BadRequest.FieldViolation(field="program_id")


@pytest.mark.parametrize("is_async", [False, True])
def test_details_are_read(is_async: bool) -> None:
    bad = error_details_pb2.BadRequest(field_violations=[VIOLATION])
    trailer = status(packed(INFO), packed(RETRY), packed(bad))
    error = from_rpc(error_with(trailer, is_async=is_async), "a:1")
    assert isinstance(error, UnavailableError)
    assert (error.reason, error.field, error.retry_after_s) == ("NOT_LEADER", "program_id", 2.0)
    assert hint_of(error) == "10.0.0.7:7070"
    assert str(error) == "a:1: try later"
    assert isinstance(error.__cause__, grpc.RpcError)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    "trailer",
    [
        b"\xff\xff\xff",
        b"",
        b"\x08",
        status(code=code_pb2.NOT_FOUND),
        status(AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")),
        status(AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\x0a\x02\xff\xfe")),
        status(AnyMessage(type_url="", value=b"")),
        status(AnyMessage(type_url="type.googleapis.com/unknown.Type", value=b"x")),
    ],
)
def test_a_broken_trailer_leaves_the_error_as_the_status_says(trailer: bytes, is_async: bool) -> None:
    error = from_rpc(error_with(trailer, is_async=is_async), "a:1")
    assert type(error) is UnavailableError
    assert str(error) == "a:1: try later"
    assert error.reason == ""


def test_a_detail_that_cannot_be_decoded_does_not_hide_the_others() -> None:
    broken = AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    assert from_rpc(error_with(status(broken, packed(RETRY))), "a:1").retry_after_s == 2.0


@settings(max_examples=300, deadline=None)
@given(
    trailer=st.binary(max_size=80)
    | st.builds(
        lambda url, value, code: status(
            AnyMessage(type_url=f"type.googleapis.com/google.rpc.{url}", value=value), code=code
        ),
        st.sampled_from(["ErrorInfo", "BadRequest", "RetryInfo", "Other"]),
        st.binary(max_size=40),
        st.integers(-5, 40),
    ),
    code=st.sampled_from(list(grpc.StatusCode)),
    is_async=st.booleans(),
)
def test_no_trailer_raises(trailer: bytes, code: grpc.StatusCode, is_async: bool) -> None:
    error = from_rpc(error_with(trailer, code, is_async=is_async), "a:1")
    assert isinstance(error, AgentServingError)
    assert error.retry_after_s >= 0
    assert hint_of(error) is None or isinstance(hint_of(error), str)


@settings(max_examples=200, deadline=None)
@given(
    code=st.none() | st.sampled_from(list(grpc.StatusCode)) | st.integers(),
    details=st.none() | st.text(max_size=20) | st.binary(max_size=5),
    trailers=st.none()
    | st.lists(st.tuples(st.sampled_from([TRAILER, "x"]), st.binary(max_size=8) | st.text(max_size=8)), max_size=3),
)
def test_no_call_raises(code: Any, details: Any, trailers: Any) -> None:
    assert isinstance(from_rpc(SyncError(code, details, trailers), "a:1"), AgentServingError)


def test_an_error_without_a_call_is_internal() -> None:
    error = from_rpc(grpc.RpcError("the channel is closed"), "a:1")
    assert type(error) is InternalError
    assert str(error) == "a:1: the channel is closed"


@pytest.mark.parametrize(
    "leader", ["unix:/tmp/x:1", "http://a:1", "a", "a:", "a:99999", "a:1\x00", "dns:///a:1", "a b:1", "a:1,b:2"]
)
def test_a_hint_that_is_no_address_is_no_hint(leader: str) -> None:
    info = error_details_pb2.ErrorInfo(reason="NOT_LEADER", metadata={"leader": leader})
    assert hint_of(from_rpc(error_with(status(packed(info))), "a:1")) == ""


def test_a_negative_delay_is_none() -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=-5))
    assert from_rpc(error_with(status(packed(retry))), "a:1").retry_after_s == 0.0


def test_codes_have_their_types() -> None:
    for code, kind in (
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
        (grpc.StatusCode.DATA_LOSS, InternalError),
    ):
        assert type(from_rpc(error_with(b"", code), "a:1")) is kind


def test_an_error_of_ours_is_returned_as_it_is() -> None:
    error = NotFoundError("x")
    assert from_rpc(error, "a:1") is error
