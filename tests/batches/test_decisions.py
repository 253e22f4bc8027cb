"""What the batch service decides: lines of input files, answers, and rows; without a service."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from agentserving_batches.lines import body_of, unknown_models, validate
from agentserving_batches.outcomes import MAX_FAILURES, MAX_WAIT_S, Answer, Tries, next_try, result_of, unfinished
from agentserving_batches.store import batch_rows, file_rows
from agentserving_batches.store.database import Database, InUseError
from agentserving_batches.values import ENDED, Batch, File, Line, LineResult, Purpose, Status
from batches.service_rig import request
from hypothesis import given
from hypothesis import strategies as st

CHAT = "/v1/chat/completions"


def line(**changes: object) -> bytes:
    return json.dumps({**request("a"), **changes}).encode() + b"\n"


@pytest.mark.parametrize(("text", "code"), [
    (b"{", "invalid_json_line"),
    (b"\xff\xfe", "invalid_json_line"),
    (b"[]", "invalid_line"),
    (line(custom_id=""), "invalid_custom_id"),
    (line(custom_id="x" * 513), "invalid_custom_id"),
    (line(method="GET"), "invalid_method"),
    (line(url="/v1/completions"), "mismatched_url"),
    (line(body=[]), "invalid_body"),
    (line(body={"messages": []}), "invalid_body"),
    (line(body={"model": "m", "stream": True}), "stream_not_allowed"),
])  # fmt: skip
def test_a_wrong_line_is_named_with_its_number(text: bytes, code: str) -> None:
    found = validate([line(custom_id="before"), b"\n", text], CHAT, 10)
    assert [(each.line, each.code) for each in found.problems] == [(3, code)]


def test_lines_are_found_where_they_stand() -> None:
    content = [line(custom_id="a"), b"  \n", line(custom_id="b"), line(custom_id="c").rstrip()]
    found = validate(content, CHAT, 3)
    whole = b"".join(content)
    assert [each.number for each in found.lines] == [1, 3, 4]
    for each in found.lines:
        text = whole[each.offset : each.offset + each.size_bytes]
        assert json.loads(text)["custom_id"] == each.custom_id
        assert json.loads(body_of(text)) == request("a")["body"]
    assert unknown_models(found, {"m"}) == []
    assert [each.line for each in unknown_models(found, {"other"})] == [1]


def test_too_many_lines_and_none() -> None:
    assert [each.code for each in validate([line(custom_id=str(n)) for n in range(3)], CHAT, 2).problems] == [
        "too_many_lines"
    ]
    assert [each.code for each in validate([b"\n"], CHAT, 2).problems] == ["empty_file"]
    assert len(validate([b"{\n"] * 1000, CHAT, 5000).problems) == 100


@given(st.lists(st.binary(max_size=60)))
def test_no_content_breaks_the_reader(content: list[bytes]) -> None:
    assert len(validate(content, CHAT, 5).problems) >= 1


def test_an_answer_that_says_when_to_come_back_is_never_the_last() -> None:
    tries = Tries()
    for _ in range(100):
        again = next_try(Answer(status=503, retry_after_s=7), tries)
        assert again is not None
        assert again.delay_s == 7
        tries = again.tries
    later = next_try(Answer(status=429, retry_after_s=86400), tries)
    assert later is not None
    assert later.delay_s == MAX_WAIT_S
    assert next_try(Answer(reason="refused", was_sent=False), tries) is not None


@pytest.mark.parametrize("answer", [Answer(status=503), Answer(status=500), Answer(reason="broke")])
def test_a_line_that_may_be_the_cause_is_tried_a_few_times(answer: Answer) -> None:
    tries, made = Tries(), 1
    while (again := next_try(answer, tries)) is not None:
        tries, made = again.tries, made + 1
    assert made == MAX_FAILURES


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 409, 413])
def test_other_answers_are_results(status: int) -> None:
    assert next_try(Answer(status=status), Tries()) is None


def test_results_are_single_lines() -> None:
    for body in (b'{\n "a":\n 1}', b"not json\n", b"", b"\xff"):
        result = result_of(Answer(status=502, body=body), batch_id="batch_1", number=2, custom_id="a\n")
        assert result.text.count(b"\n") == 1
        assert json.loads(result.text)["id"] == "batch_req_1_2"
        assert not result.succeeded
    lost = json.loads(result_of(Answer(reason="broke"), batch_id="b", number=1, custom_id="a").text)
    assert (lost["response"], lost["error"]) == (None, {"code": "call_failed", "message": "broke"})
    text = unfinished(Status.EXPIRED, batch_id="b", number=1, custom_id="a")
    assert json.loads(text)["error"]["code"] == "batch_expired"


def batch(**changes: object) -> Batch:
    values: dict[str, object] = {
        "batch_id": "b", "tenant": "blue", "status": Status.VALIDATING, "endpoint": CHAT, "window": "24h",
        "input_file_id": "f", "created_s": 1, "expires_s": 2, "grant": "asg_x",
    }  # fmt: skip
    return Batch(**{**values, **changes})  # type: ignore[arg-type]


async def test_a_line_has_one_result_and_an_ended_batch_no_grant(tmp_path: Path) -> None:
    output = File(file_id="o", tenant="blue", name="o", purpose=Purpose.OUTPUT, size_bytes=1, created_s=1, expires_s=9)
    with Database(tmp_path) as database:
        await database.run(lambda db: batch_rows.insert(db, batch()))
        asked = [Line(number=n, custom_id=str(n), offset=0, size_bytes=1) for n in (1, 2)]
        await database.run(lambda db: batch_rows.begin(db, "b", asked, 3))
        first, second = (
            LineResult(number=1, text=b"1", succeeded=True),
            LineResult(number=1, text=b"2", succeeded=False),
        )
        assert await database.run(lambda db: batch_rows.record(db, "b", first))
        assert not await database.run(lambda db: batch_rows.record(db, "b", second))
        found = await database.run(lambda db: batch_rows.get(db, "blue", "b"))
        assert found is not None
        assert (found.total, found.completed, found.failed, found.grant) == (2, 1, 0, "asg_x")
        assert [each.number for each in await database.run(lambda db: batch_rows.pending(db, "b", 0, 9))] == [2]
        await database.run(
            lambda db: batch_rows.enter(db, "b", Status.FINALIZING, 4, of=[Status.IN_PROGRESS], ending=Status.EXPIRED)
        )
        assert await database.run(lambda db: batch_rows.end(db, batch(ending=Status.EXPIRED), output, None, 5))
        assert not await database.run(lambda db: batch_rows.end(db, batch(ending=Status.EXPIRED), output, None, 5))
        found = await database.run(lambda db: batch_rows.any_tenants(db, "b"))
        assert found is not None
        assert (found.status, found.grant, found.output_file_id, found.error_file_id) == (Status.EXPIRED, "", "o", "")
        assert await database.run(lambda db: batch_rows.results(db, "b", 0, 9)) == []
        assert await database.run(lambda db: batch_rows.get(db, "red", "b")) is None


@pytest.mark.parametrize("status", Status)
async def test_a_batch_is_active_until_it_has_ended(tmp_path: Path, status: Status) -> None:
    with Database(tmp_path) as database:
        await database.run(lambda db: batch_rows.insert(db, batch(status=status)))
        assert bool(await database.run(batch_rows.active_ids)) == (status not in ENDED)


async def test_a_failed_transaction_changes_nothing_and_a_directory_has_one_owner(tmp_path: Path) -> None:
    def breaks(db: sqlite3.Connection) -> None:
        batch_rows.insert(db, batch())
        raise ValueError("broken")

    with Database(tmp_path) as database:
        with pytest.raises(ValueError, match="broken"):
            await database.run(breaks)
        assert await database.run(batch_rows.active_ids) == []
        with pytest.raises(InUseError, match="in use by another process"), Database(tmp_path):
            pass
        await database.run(lambda db: db.execute("PRAGMA user_version = 2"))
    with pytest.raises(InUseError, match="newer agentserving"), Database(tmp_path):
        pass


async def test_what_has_expired_goes_unless_a_batch_needs_it(tmp_path: Path) -> None:
    files = [
        File(file_id=name, tenant="blue", name=name, purpose=Purpose.BATCH, size_bytes=1, created_s=1, expires_s=5)
        for name in ("f", "g")
    ]
    with Database(tmp_path) as database:
        for each in files:
            await database.run(lambda db, each=each: file_rows.insert(db, each))
        await database.run(lambda db: batch_rows.insert(db, batch()))
        assert await database.run(lambda db: file_rows.expired(db, 4, 9)) == []
        assert await database.run(lambda db: file_rows.expired(db, 5, 9)) == ["g"]
        await database.run(lambda db: batch_rows.delete_ended(db, 100))
        assert await database.run(batch_rows.active_ids) == ["b"]
