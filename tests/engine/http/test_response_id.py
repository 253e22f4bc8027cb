"""A request for a response gets an id that names the engine, and its body stays what it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agentserving.contract.response_ids import engine_of, response_id
from agentserving_engine.http.response_id import marked
from hypothesis import given
from hypothesis import strategies as st

UNIQUE = "0123456789abcdef" * 2
OURS = f"resp_e-0_{UNIQUE}"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
BODIES = st.dictionaries(st.text(), VALUES, min_size=1, max_size=6)


@given(BODIES, st.sampled_from([None, 2]), st.booleans(), st.text(" \t\r\n", max_size=3))
def test_a_body_is_the_same_document_with_an_id(
    body: dict[str, Any], indent: int | None, ascii: bool, gap: str
) -> None:
    text = gap + json.dumps(body, indent=indent, ensure_ascii=ascii)
    sent = text.encode(errors="surrogatepass")
    assert json.loads(marked(sent, OURS).decode(errors="surrogatepass")) == {"request_id": OURS, **body}


def test_an_id_that_the_client_has_chosen_stays() -> None:
    assert json.loads(marked(b'{"input":"x","request_id":"mine"}', OURS))["request_id"] == "mine"


@given(BODIES, st.integers(1, 40))
def test_the_first_bytes_are_enough(body: dict[str, Any], cut: int) -> None:
    sent = json.dumps(body).encode()
    assert json.loads(marked(sent[:cut], OURS) + sent[cut:]) in (body, {"request_id": OURS, **body})


@given(st.binary(max_size=20))
def test_nothing_but_an_object_is_changed(sent: bytes) -> None:
    if not sent.lstrip().startswith(b"{"):
        assert marked(sent, OURS) == sent


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_other_encodings_are_left_alone(encoding: str) -> None:
    sent = '{"input": "x"}'.encode(encoding)
    assert marked(sent, OURS) == sent


@pytest.mark.parametrize("sent", [b"", b"{}", b"{ }", b"{", b"[]", b'"{}"', b"{input: 1}"])
def test_what_has_no_first_field_is_left_alone(sent: bytes) -> None:
    assert marked(sent, OURS) == sent


@pytest.mark.parametrize("engine", ["e0", "demo-engine-3", "a_b", "resp_x", "a.b:8000"])
def test_an_id_names_its_engine(engine: str) -> None:
    assert engine_of(response_id(engine, UNIQUE)) == engine


@pytest.mark.parametrize("engine", ["", "../x", "a/b", 'a"b', "a b", "\u00e9", "a\n", "x" * 200])
def test_a_name_that_cannot_stand_in_a_path_makes_no_id(engine: str) -> None:
    assert response_id(engine, UNIQUE) == ""


@pytest.mark.parametrize(
    "other", [f"resp_{UNIQUE}", "resp_e0_", f"resp__{UNIQUE}", f"x_e0_{UNIQUE}", f"resp_e0_{UNIQUE}x"]
)
def test_other_ids_name_no_engine(other: str) -> None:
    assert engine_of(other) is None
