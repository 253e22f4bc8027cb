"""The batch service: each line of a batch has one result, whatever happens to calls and to the service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from agentserving.contract.grant import HEADER, Grant, sign
from agentserving_batches.limits import Limits
from agentserving_batches.outcomes import MAX_FAILURES
from aiohttp import web
from batches.service_rig import KEY, create, echoes, ended, lines, played_gateway, request, service, text_of
from structlog.testing import capture_logs
from support.eventually import eventually_async

REFUSED = (openai.APIStatusError,)


async def test_calls_name_their_batch_as_program_and_carry_its_grant(tmp_path: Path) -> None:
    async with played_gateway() as (gateway, url), service(tmp_path, url) as made:
        client = made.client()
        batch = await ended(client, await create(client, [request("a")]))
        (headers,) = gateway.headers
        assert headers["x-agentserving-program-id"] == batch.id
        assert headers["x-agentserving-service"] == "batch"
        assert headers["authorization"].startswith("Bearer asg_")
        (line,) = await lines(client, batch.output_file_id)
        assert line["response"] == {"status_code": 200, "request_id": "call-a", "body": {"said": "a"}}


async def test_the_last_call_ends_the_batchs_program_and_so_does_one_that_is_made_again(tmp_path: Path) -> None:
    async def script(text: str, before: int) -> web.Response:
        if text == "a" and not before:
            return web.json_response({}, status=429)
        return await echoes(text, before)

    limits = Limits(min_free_bytes=0, tenant_calls=1)
    async with played_gateway(script) as (gateway, url), service(tmp_path, url, limits) as made:
        client = made.client()
        batch = await create(client, [request(name) for name in ("first", "second", "a")])
        assert (await ended(client, batch)).status == "completed"
        final = [headers.get("x-agentserving-final", "") for headers in gateway.headers]
        assert list(zip(gateway.calls, final, strict=True)) == [
            ("first", ""), ("second", ""), ("a", "true"), ("a", "true")
        ]  # fmt: skip


async def test_a_call_that_may_come_back_is_made_again_and_others_are_results(tmp_path: Path) -> None:
    async def script(text: str, before: int) -> web.Response:
        status, _, times = text.partition(" x")
        if before < int(times or 1):
            return web.json_response({"error": status}, status=int(status), headers={"retry-after": "0"})
        return web.json_response({"said": text})

    async with played_gateway(script) as (gateway, url), service(tmp_path, url) as made:
        client = made.client()
        asked = ["429 x2", "503 x2", "502 x1", "400 x9", "401 x9", "500 x9"]
        batch = await ended(client, await create(client, [request(each) for each in asked]))
        output = {each["custom_id"] for each in await lines(client, batch.output_file_id)}
        errors = {each["custom_id"]: each for each in await lines(client, batch.error_file_id)}
        assert output == {"429 x2", "503 x2", "502 x1"}
        assert {each: line["response"]["status_code"] for each, line in errors.items()} == {
            "400 x9": 400, "401 x9": 401, "500 x9": 500,
        }  # fmt: skip
        assert [gateway.calls.count(each) for each in asked] == [3, 3, 2, 1, 1, MAX_FAILURES]
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 6, "completed": 3, "failed": 3}


async def test_a_service_that_ends_continues_with_the_lines_without_result(tmp_path: Path) -> None:
    async def script(text: str, before: int) -> web.Response:
        if text == "second" and not before:
            await asyncio.Event().wait()
        return web.json_response({"said": text})

    async with played_gateway(script) as (gateway, url):
        async with service(tmp_path, url) as made:
            client = made.client()
            batch = await create(client, [request("first"), request("second")])

            async def half_done() -> bool:
                counts = (await client.batches.retrieve(batch.id)).request_counts
                return counts is not None and counts.completed == 1 and gateway.calls.count("second") == 1

            await eventually_async(half_done)
        async with service(tmp_path, url) as made:
            client = made.client()
            done = await ended(client, batch)
            assert [each["custom_id"] for each in await lines(client, done.output_file_id)] == ["first", "second"]
    assert sorted(gateway.calls) == ["first", "second", "second"]


async def test_a_cancelled_batch_breaks_its_calls_off(tmp_path: Path) -> None:
    async def never(text: str, before: int) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with played_gateway(never) as (gateway, url), service(tmp_path, url) as made:
        client = made.client()
        batch = await create(client, [request("a"), request("b")])
        await eventually_async(lambda: gateway.in_progress == 2)
        await client.batches.cancel(batch.id)
        done = await ended(client, batch)
        assert (done.status, done.output_file_id) == ("cancelled", None)
        assert [each["error"]["code"] for each in await lines(client, done.error_file_id)] == ["batch_cancelled"] * 2
        await eventually_async(lambda: gateway.broken_off == 2)


async def test_calls_of_a_tenant_are_bounded(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def waits(text: str, before: int) -> web.Response:
        await gate.wait()
        return web.json_response({})

    limits = Limits(min_free_bytes=0, tenant_calls=2)
    async with played_gateway(waits) as (gateway, url), service(tmp_path, url, limits) as made:
        blue, red = made.client("blue"), made.client("red")
        batches = [(blue, await create(blue, [request(f"b{i}-{n}") for n in range(4)])) for i in range(2)]
        batches.append((red, await create(red, [request("r")])))
        await eventually_async(lambda: gateway.in_progress == 3)
        gate.set()
        for client, batch in batches:
            assert (await ended(client, batch)).status == "completed"
    assert gateway.most_in_progress == 3


async def test_limits_are_refused_with_what_to_do(tmp_path: Path) -> None:
    async def never(text: str, before: int) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    limits = Limits(
        min_free_bytes=0, max_file_bytes=400, tenant_bytes=700, tenant_files=4, tenant_batches=1, max_lines=2
    )
    async with played_gateway(never) as (_, url), service(tmp_path, url, limits) as made:
        client = made.client()
        with pytest.raises(REFUSED, match="at most 400 bytes"):
            await client.files.create(file=("a", b"x" * 401), purpose="batch")
        with pytest.raises(REFUSED, match="the file is empty"):
            await client.files.create(file=("a", b""), purpose="batch")
        await create(client, [request("a")])
        with pytest.raises(REFUSED, match="have not ended, as many as it may have") as busy:
            await create(client, [request("a")])
        assert busy.value.status_code == 429
        other = made.client("other")
        long = await other.files.create(file=("a", text_of([request("a")]) + b"\n" + b"{}\n{}\n"), purpose="batch")
        await other.files.create(file=("a", b"x" * 400), purpose="batch")
        with pytest.raises(REFUSED, match="delete some"):
            await other.files.create(file=("a", b"x" * 400), purpose="batch")
        await other.files.delete(long.id)
        for _ in range(3):
            await other.files.create(file=("a", b"x"), purpose="batch")
        with pytest.raises(REFUSED, match="may have 4 with 700"):
            await other.files.create(file=("a", b"x"), purpose="batch")
    full = Limits(min_free_bytes=1 << 62)
    async with played_gateway() as (_, url), service(tmp_path / "full", url, full) as made:
        with pytest.raises(REFUSED, match="bytes left") as refused:
            await made.client().files.create(file=("a", b"x"), purpose="batch")
        assert refused.value.status_code == 507
    # A refused upload leaves nothing behind.
    assert not any((tmp_path / "incoming").iterdir())


@pytest.mark.parametrize(("changes", "message"), [
    ({"endpoint": "/v1/nothing"}, "endpoint is '/v1/nothing'"),
    ({"completion_window": "25h"}, "use 24h, or less"),
    ({"completion_window": "0s"}, "use 24h, or less"),
    ({"input_file_id": "file-none"}, "there is no file 'file-none'"),
    ({"input_file_id": "../lock"}, "there is no file"),
    ({"metadata": {"a": "x" * 513}}, "metadata: 16 pairs"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata: 16 pairs"),
    ({"endpoint": 3}, "Expected `str`, got `int`"),
])  # fmt: skip
async def test_a_batch_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    async with played_gateway() as (_, url), service(tmp_path, url) as made:
        client = made.client()
        file = await client.files.create(file=("a", b"{}"), purpose="batch")
        asked = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h", **changes}
        with pytest.raises(REFUSED, match=message):
            await client.post("/batches", cast_to=object, body=asked)
        assert (await client.batches.list()).data == []


async def test_a_file_that_a_batch_needs_stays_and_outputs_are_no_inputs(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def waits(text: str, before: int) -> web.Response:
        await gate.wait()
        return web.json_response({})

    async with played_gateway(waits) as (_, url), service(tmp_path, url) as made:
        client = made.client()
        batch = await create(client, [request("a")])
        with pytest.raises(openai.ConflictError, match=f"input of batch {batch.id}"):
            await client.files.delete(batch.input_file_id)
        gate.set()
        done = await ended(client, batch)
        await client.files.delete(batch.input_file_id)
        assert done.output_file_id is not None
        with pytest.raises(openai.BadRequestError, match="written by a batch"):
            await client.batches.create(
                input_file_id=done.output_file_id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        assert [each.purpose for each in (await client.files.list()).data] == ["batch_output"]
        with pytest.raises(openai.ConflictError, match="cannot be cancelled"):
            await client.batches.cancel(batch.id)


@pytest.mark.parametrize("headers", [
    {},
    {HEADER: "asg_nonsense"},
    {HEADER: sign(Grant(tenant="blue", credential="", expires_unix_s=1), KEY)},
])  # fmt: skip
async def test_who_is_not_verified_is_not_served(tmp_path: Path, headers: dict[str, str]) -> None:
    async with played_gateway() as (_, url), service(tmp_path, url) as made:
        with pytest.raises(openai.InternalServerError, match="could not be verified") as refused:
            await made.client(headers=headers).files.list()
        assert refused.value.status_code == 503


async def test_changes_of_files_and_batches_are_in_the_audit_log_and_reading_is_not(tmp_path: Path) -> None:
    def audited(logs: list[Any]) -> list[tuple[str, ...]]:
        names = ("who", "tenant", "method", "object", "outcome", "reason")
        return [tuple(each.get(name, "") for name in names) for each in logs if each["event"] == "audit"]

    async with played_gateway() as (_, url), service(tmp_path, url) as made:
        client = made.client()
        with capture_logs() as logs:
            batch = await ended(client, await create(client, [request("a")]))
            await client.files.list()
            await client.files.delete(batch.input_file_id)
            with pytest.raises(openai.NotFoundError):
                await client.batches.cancel("batch_none")
            for _ in range(3):
                with pytest.raises(openai.InternalServerError):
                    await made.client(headers={}).files.list()
        assert audited(logs) == [
            ("k", "blue", "POST /v1/files", f"file/{batch.input_file_id}", "OK", ""),
            ("k", "blue", "POST /v1/batches", f"batch/{batch.id}", "OK", ""),
            ("k", "blue", "DELETE /v1/files/{id}", f"file/{batch.input_file_id}", "OK", ""),
            ("k", "blue", "POST /v1/batches/{id}/cancel", "batch/batch_none", "NOT_FOUND", "not_found"),
            # Anyone who reaches the port can cause these: equal ones are a line a minute.
            ("", "", "GET /v1/files", "", "UNAUTHENTICATED", "invalid_grant"),
        ]
