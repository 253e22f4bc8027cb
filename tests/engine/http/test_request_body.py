"""A request body's stream flag and reserved fields are read as vLLM reads them, whatever their spelling."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agentserving_engine.http.request_body import RefusedBodyError, asks_for_a_stream, with_salt
from hypothesis import given
from hypothesis import strategies as st

DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    ("body", "stream"),
    [
        (b'{"stream": true}', True),
        (b'{"stream":false}', False),
        (b"{}", False),
        (b"", False),
        (b"not json", False),
        (b"[true]", False),
        (b'{"str\\u0065am": true}', True),
        (b'{"stream": false, "stream": true}', True),
        (b'{"stream": true, "stream": false}', False),
        (b'{"tools": [{"default": {"stream": true}}]}', False),
        (b'{"messages": [{"content": "\\"stream\\": true"}]}', False),
        (b'{"temperature": NaN, "stream": true}', True),
        (b'\xef\xbb\xbf{"stream": true}', True),
        (b'{"x": "\\ud800", "stream": true}', True),
        ('{"stream": true}'.encode("utf-16"), True),
    ],
)
def test_only_the_top_level_flag_makes_a_stream(body: bytes, stream: bool) -> None:
    assert asks_for_a_stream([body]) is stream
    assert asks_for_a_stream([body[at : at + 1] for at in range(len(body))]) is stream


@pytest.mark.parametrize(
    "body",
    [
        b'{"session_id": "x"}',
        b'{"session_id": 5}',
        b'{"session\\u005fid": "x"}',
        b'{"\\u0073\\u0065ssion_id": "x"}',
        b'{"session_id": null, "session_id": "x"}',
        b'{"vllm_xargs": {"session_id": "x"}}',
        b'{"vllm_xargs": {"session\\u005fid": "x"}}',
        b'{"temperature": NaN, "session_id": "x"}',
        b'\xef\xbb\xbf{"session_id": "x"}',
        '{"session_id": "forged"}'.encode("utf-16-le"),
        '{"session_id": "forged"}'.encode("utf-16"),
        '{"session_id": "forged"}'.encode("utf-32"),
        b'{"session_id": "x", "y":' + b"[" * 2_000 + b"]" * 2_000 + b"}",
        b'{"session_id": "x", "y":' + DEEP,
    ],
)  # fmt: skip
def test_a_body_cannot_name_a_session_in_any_spelling_that_vllm_reads(body: bytes) -> None:
    with pytest.raises(RefusedBodyError, match=r"x-agentserving-program-id|nested too deeply"):
        asks_for_a_stream([body])


@pytest.mark.parametrize(
    "body",
    [
        b'{"session_id": null}',
        b'{"session_id": ""}',
        b'{"session_id": "x", "session_id": null}',
        b'{"vllm_xargs": {"session_id": ""}}',
        b'{"vllm_xargs": ["session_id"]}',
        b'{"tools": [{"function": {"parameters": {"properties": {"session_id": {"type": "string"}}}}}]}',
        b'{"messages": [{"role": "user", "content": "\\"session_id\\": \\"x\\""}], "metadata": {"session_id": "x"}}',
    ],
)
def test_a_session_id_that_vllm_does_not_use_is_no_reason_to_refuse(body: bytes) -> None:
    assert asks_for_a_stream([body]) is False


TEXT = st.text('as_"\\{é\u2028\ud800', max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT | st.sampled_from(["stream", "session_id"]), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(["stream", "session_id", "vllm_xargs", "messages"])


@given(document=st.dictionaries(FIELDS, JSON), ascii_only=st.booleans(), cut=st.integers(0, 200))
def test_the_answer_is_that_of_pythons_json(document: dict[str, Any], ascii_only: bool, cut: int) -> None:
    body = json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    extra = document.get("vllm_xargs")
    names = [document.get("session_id"), extra.get("session_id") if isinstance(extra, dict) else None]
    try:
        json.loads(body)
    except ValueError:
        # Lone surrogates that are not escaped: vLLM answers 400.
        return
    if any(name is not None and name != "" for name in names):
        with pytest.raises(RefusedBodyError):
            asks_for_a_stream([body[:cut], body[cut:]])
    else:
        assert asks_for_a_stream([body[:cut], body[cut:]]) is (document.get("stream") is True)


@pytest.mark.parametrize("field", ["priority", "kv_transfer_params", "ec_transfer_params", "cache_salt", "request_id"])
@pytest.mark.parametrize("shape", ['{"%s": %s}', '{"vllm_xargs": {"%s": %s}}', '{"t": NaN, "%s": %s}'])
def test_fields_that_order_or_route_are_not_taken_from_clients(field: str, shape: str) -> None:
    for said in ("5", '"x"', '{"do_remote_prefill": true}', "[1]"):
        with pytest.raises(RefusedBodyError, match="set by agentserving") as caught:
            asks_for_a_stream([(shape % (field, said)).encode()])
        assert (caught.value.code, caught.value.status) == ("reserved_field", 400)
    for unsaid in ("null", "0", '""', "{}"):
        assert not asks_for_a_stream([(shape % (field, unsaid)).encode()])
    assert not asks_for_a_stream([json.dumps({"metadata": {field: "mine"}}).encode()])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text() | st.just("cache_salt"), JSON, max_size=5), st.sampled_from(["", " ", "\n\t"]))
def test_the_salt_is_what_python_reads_last_and_nothing_else_changes(document: dict[str, Any], tail: str) -> None:
    for text in (json.dumps(document), json.dumps(document, ensure_ascii=False, indent=1)):
        try:
            body = (text + tail).encode()
        except UnicodeEncodeError:
            continue
        salted = json.loads(with_salt(body, "s"))
        assert repr(salted) == repr({**document, "cache_salt": "s"}) or salted == {**document, "cache_salt": "s"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"cache_salt": null}',
        b'{"cache_salt": "", "cache\\u005fsalt": null}',
        b'\xef\xbb\xbf{"prompt": "x"}',
        '{"prompt": "x"}'.encode("utf-16"),
        b'{"prompt": "x", "temperature": NaN}',
    ],
)
def test_no_spelling_of_a_body_escapes_the_salt(body: bytes) -> None:
    assert not asks_for_a_stream([body])
    assert json.loads(with_salt(body, "s"))["cache_salt"] == "s"


@pytest.mark.parametrize("body", [b"", b"[1]", b"no json", b'{"a": 1} x'])
def test_what_vllm_refuses_stays_as_it_is(body: bytes) -> None:
    assert with_salt(body, "s") == body


@pytest.mark.parametrize(
    "body", [b'{"thread": {"type": "create"}}', b'{"thr\\u0065ad": {}}', b'{"x": NaN, "thread": 1}']
)
def test_a_conversation_that_is_to_be_stored_is_refused_where_its_field_means_that(body: bytes) -> None:
    with pytest.raises(RefusedBodyError, match="stores no conversations") as refused:
        asks_for_a_stream([body], threads=False)
    assert (refused.value.status, refused.value.code) == (400, "thread_unsupported_request")
    assert not asks_for_a_stream([body])
    assert not asks_for_a_stream([b'{"thread": null}'], threads=False)
