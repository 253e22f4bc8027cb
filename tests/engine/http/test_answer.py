"""What an answer adds to the application's bytes: comments in silence, one error event at the end, nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from agentserving_engine.http.answer import COMMENT, Answer, Chunk, Head
from agentserving_engine.http.dialects import ROUTES, Dialect, dialect_of
from agentserving_engine.http.request_body import RefusedBodyError
from hypothesis import given
from hypothesis import strategies as st

STREAM = [(b"Content-Type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json")]
EVENT = b'data: {"token": 1}\n\n'
CREATED = b'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1","status":"in_progress","error":null}}\n\n'  # noqa: E501
DELTA = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"x","sequence_number":7}\n\n'  # noqa: E501


@dataclass
class Client:
    """What has been sent to the client of one answer, and when the last of it was."""

    answer: Answer
    statuses: list[int] = field(default_factory=list)
    body: bytes = b""
    ended: bool = False
    silent_since: float = 0.0

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now: float = 0.0) -> None:
        if self.answer.head(status, headers, now):
            self._take([Head(status, headers)], now)

    def chunk(self, data: bytes, now: float = 0.0, *, last: bool = False) -> None:
        sent = self.answer.chunk(data, last=last, now=now)
        if sent is not None:
            self._take([Chunk(sent, last)], now)

    def tick(self, now: float) -> None:
        self._take(self.answer.tick(now), now)

    def application_ends(self, now: float = 0.0) -> None:
        closing = self.answer.application_ended()
        self._take([closing] if closing else [], now)

    def _take(self, sent: Sequence[Head | Chunk], now: float) -> None:
        for each in sent:
            assert not self.ended, "sent after the end"
            self.silent_since = now
            if isinstance(each, Head):
                assert not self.statuses, "two heads"
                self.statuses.append(each.status)
            else:
                assert self.statuses, "a body before the head"
                self.body += each.data
                self.ended = each.last


def client(dialect: Dialect = Dialect.OPENAI, *, keep_alive_s: float = 15.0, stream: bool = True) -> Client:
    answer = Answer(dialect, keep_alive_s)
    answer.request_complete(stream=stream, now=0.0)
    return Client(answer)


def events(body: bytes) -> list[tuple[str, Any]]:
    """(event, data) of an SSE body, as a client reads it. Fails for a body that ends within an event."""
    *blocks, rest = body.replace(COMMENT, b"").split(b"\n\n")
    assert rest == b""
    found = []
    for block in blocks:
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n"))
        data = fields[b"data"]
        found.append((fields.get(b"event", b"").decode(), "[DONE]" if data == b"[DONE]" else json.loads(data)))
    return found


def test_a_silent_stream_gets_a_comment_each_interval() -> None:
    one = client()
    one.head(200, STREAM, 1.0)
    assert one.answer.due_at == 16.0
    one.tick(15.9)
    assert one.body == b""
    one.tick(16.0)
    one.tick(20.0)
    assert one.body == COMMENT
    one.tick(31.0)
    assert one.body == COMMENT * 2
    one.chunk(EVENT, 40.0)
    assert one.answer.due_at == 55.0


def test_a_stream_that_falls_silent_after_tokens_gets_comments_too() -> None:
    one = client()
    one.head(200, STREAM)
    one.chunk(EVENT, 5.0)
    one.tick(20.0)
    assert one.body == EVENT + COMMENT


@pytest.mark.parametrize("partial", [b"data: {", b'data: {"a": 1}\n', b"\n"])
def test_no_comment_is_put_into_an_event(partial: bytes) -> None:
    one = client()
    one.head(200, STREAM)
    one.chunk(partial, 0.0)
    one.tick(15.0)
    assert one.body == partial


def test_an_answer_that_is_no_stream_gets_nothing_however_long_it_takes() -> None:
    one = client(stream=False)
    assert one.answer.due_at is None
    one.tick(1e6)
    one.head(200, JSON, 1e6)
    assert one.answer.due_at is None
    one.chunk(b'{"a":', 1e6)
    one.tick(2e6)
    one.chunk(b"1}", 2e6, last=True)
    one.application_ends()
    assert (one.statuses, one.body) == ([200], b'{"a":1}')


def test_an_interval_of_zero_sends_no_comment_and_opens_nothing() -> None:
    one = client(keep_alive_s=0)
    assert one.answer.due_at is None
    one.tick(1e6)
    one.head(404, JSON, 1e6)
    assert one.statuses == [404]


def test_a_late_head_is_opened_early_and_the_stream_goes_on() -> None:
    one = client()
    one.tick(15.0)
    assert (one.statuses, one.body) == ([200], COMMENT)
    one.head(200, STREAM, 20.0)
    one.chunk(EVENT, 20.0)
    one.chunk(b"", 20.0, last=True)
    one.application_ends()
    assert (one.statuses, one.body, one.ended) == ([200], COMMENT + EVENT, True)


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_an_error_before_the_first_comment_keeps_its_status(status: int) -> None:
    one = client()
    one.head(status, JSON, 14.9)
    one.chunk(b'{"error": 1}', 14.9, last=True)
    one.tick(100.0)
    one.application_ends()
    assert (one.statuses, one.body) == ([status], b'{"error": 1}')


def late_error(dialect: Dialect, document: bytes, status: int = 404) -> list[tuple[str, Any]]:
    one = client(dialect)
    one.tick(15.0)
    one.head(status, JSON, 16.0)
    one.chunk(document[:9], 16.0)
    one.chunk(document[9:], 16.0, last=True)
    one.application_ends()
    assert (one.statuses, one.ended) == ([200], True)
    return events(one.body)


def test_an_error_after_the_first_comment_becomes_an_event_of_the_dialect() -> None:
    error = {"message": "no such model", "type": "NotFoundError", "param": "model", "code": 404}
    document = json.dumps({"error": error}).encode()
    assert late_error(Dialect.OPENAI, document) == [("", {"error": error}), ("", "[DONE]")]
    assert late_error(Dialect.MESSAGES, document) == [("error", {"type": "error", "error": error})]
    event = {"type": "error", "code": "404", "message": "no such model", "param": "model", "sequence_number": 0}
    assert late_error(Dialect.RESPONSES, document) == [("error", event)]


@pytest.mark.parametrize("document", [b"Internal Server Error", b"[]", b'{"error": "x"}', b"\xff", b"{}" * 99_999])
def test_an_unreadable_error_after_the_first_comment_still_ends_the_stream(document: bytes) -> None:
    ((_, data), done) = late_error(Dialect.OPENAI, document, 500)
    assert data["error"]["code"] == 500
    assert done == ("", "[DONE]")


def broken(dialect: Dialect, *chunks: bytes) -> Client:
    one = client(dialect)
    one.head(200, STREAM)
    for each in chunks:
        one.chunk(each)
    one.application_ends()
    one.chunk(b"late", last=True)
    assert one.ended
    return one


def test_a_stream_that_its_engine_leaves_open_ends_with_the_dialects_error_event() -> None:
    error, done = events(broken(Dialect.OPENAI, EVENT).body)[1:]
    assert error[1]["error"]["type"] == "server_error"
    assert done == ("", "[DONE]")
    ((name, data),) = events(broken(Dialect.MESSAGES).body)
    assert (name, data["type"], data["error"]["type"]) == ("error", "error", "api_error")
    ((name, data),) = events(broken(Dialect.RESPONSES).body)
    assert (name, data["type"], data["code"], data["sequence_number"]) == ("error", "error", "server_error", 0)


def test_a_response_that_was_created_fails_as_a_whole() -> None:
    name, data = events(broken(Dialect.RESPONSES, CREATED, DELTA).body)[-1]
    assert (name, data["type"], data["sequence_number"]) == ("response.failed", "response.failed", 8)
    assert data["response"]["id"] == "resp_1"
    assert data["response"]["status"] == "failed"
    assert data["response"]["error"]["code"] == "server_error"


def test_an_event_that_was_cut_does_not_swallow_the_error_event() -> None:
    body = broken(Dialect.OPENAI, EVENT, b'data: {"tok').body
    assert b'data: {"tok\n\ndata: {"error"' in body


def test_a_stream_that_is_whole_gets_no_event() -> None:
    one = client()
    one.head(200, STREAM)
    one.chunk(EVENT)
    one.chunk(b"", last=True)
    one.application_ends()
    assert one.body == EVENT


def test_nothing_is_sent_to_a_client_that_has_left() -> None:
    one = client()
    one.head(200, STREAM)
    one.chunk(EVENT)
    one.answer.client_left()
    one.tick(100.0)
    one.application_ends()
    assert one.body == EVENT


@pytest.mark.parametrize("dialect", Dialect)
def test_a_refused_request_is_answered_in_the_dialect_and_the_application_is_not_heard(dialect: Dialect) -> None:
    one = client(dialect)
    head, chunk = one.answer.refuse(RefusedBodyError("no", param="session_id", code="reserved_field"))
    assert isinstance(head, Head)
    assert isinstance(chunk, Chunk)
    assert (head.status, dict(head.headers)[b"content-length"], chunk.last) == (400, b"%d" % len(chunk.data), True)
    error = json.loads(chunk.data)["error"]
    assert (error["message"], error["type"]) == ("no", "invalid_request_error")
    assert (error.get("param"), error.get("code")) == (
        (None, None) if dialect is Dialect.MESSAGES else ("session_id", "reserved_field")
    )
    one.head(400, JSON)
    one.chunk(b"parse error", last=True)
    one.application_ends()
    assert (one.statuses, one.body) == ([], b"")


def test_routes_that_do_not_generate_have_no_dialect() -> None:
    assert {dialect_of(path) for path in ROUTES} == set(Dialect)
    assert dialect_of("/v1/responses/resp_1") is Dialect.RESPONSES
    for path in ("/v1/models", "/health", "/v1/messages/count_tokens", "/v1/embeddings", "/", ""):
        assert dialect_of(path) is None


STEPS = st.lists(
    st.tuples(st.floats(0.0, 40.0), st.sampled_from([EVENT, CREATED, DELTA, b"", b"data: {", b'"a": 1}\n\n', b"\n"])),
    max_size=12,
)


@given(
    dialect=st.sampled_from(Dialect), first_s=st.floats(0.0, 50.0), steps=STEPS, whole=st.booleans(),
    stream=st.booleans(), streams=st.booleans(), keep_alive_s=st.sampled_from([0.0, 1.0, 15.0]),
)  # fmt: skip
def test_no_byte_changes_and_no_silence_is_too_long(
    *, dialect: Dialect, first_s: float, steps: list[tuple[float, bytes]], whole: bool, stream: bool, streams: bool,
    keep_alive_s: float,
) -> None:  # fmt: skip
    """Without what was added, the client has exactly the application's bytes, under its status."""
    one = client(dialect, keep_alive_s=keep_alive_s, stream=stream)
    now, given_bytes, last_chunk = 0.0, b"", b""

    def until(moment: float) -> None:
        # A timer that fires in time, as the shell's does.
        while (due := one.answer.due_at) is not None and due <= moment:
            before, silent_since = one.body, one.silent_since
            one.tick(due)
            if not last_chunk or last_chunk.endswith(b"\n\n"):
                assert due - silent_since <= keep_alive_s + 1e-6
                assert one.body == before + COMMENT
            elif not given_bytes.endswith(b"\n\n"):
                assert one.body == before, "a comment within an event"

    until(now := now + first_s)
    opened_early = bool(one.statuses)
    if not streams and opened_early:
        # It becomes an event: see the tests above.
        return
    one.head(200 if streams else 404, STREAM if streams else JSON, now)
    for pause_s, data in steps:
        until(now := now + pause_s)
        one.chunk(data, now)
        given_bytes, last_chunk = given_bytes + data, data or last_chunk
    if whole:
        one.chunk(b"", now, last=True)
    assert one.statuses == [200 if streams else 404]
    assert opened_early == (stream and 0 < keep_alive_s <= first_s)
    assert one.body.replace(COMMENT, b"") == given_bytes
    if keep_alive_s == 0 or not streams:
        assert one.body == given_bytes
    one.application_ends()
    assert one.ended == (whole or streams)
    if whole:
        assert one.body.replace(COMMENT, b"") == given_bytes
