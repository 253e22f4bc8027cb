"""Files and batches pass the picker: it says who asks by a grant, and accepts one for the calls of a batch."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agentserving.contract.grant import CALLS_S, HEADER, Grant, sign, verify
from agentserving.contract.keys import KeySet
from agentserving.contract.ticket import verify as verify_ticket
from agentserving_cli.local.ports import free_ports
from agentserving_gateway.credentials import Authenticator
from agentserving_gateway.errors import HttpError
from agentserving_gateway.grants import Grants
from aiohttp import web
from gateway.gateway_rig import KEY, KEYS, Rig, answer_json, rig, until, value
from gateway.played_keys import PlayedKeys
from support.eventually import eventually_async

CHAT = b'{"model":"m","messages":[]}'
PUBLIC = [KEY.public_key()]


@asynccontextmanager
async def service(directory: Path, port: int = 0) -> AsyncIterator[tuple[str, list[web.BaseRequest]]]:
    """A batch service that answers everything with the path: (its address, what it was asked). `port`: it has a name
    and listens there; 0 = a Unix socket."""
    asked: list[web.BaseRequest] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        asked.append(request)
        return web.json_response({"path": request.path})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    path = directory / "b.sock"
    await web.UnixSite(runner, path).start()
    site = web.TCPSite(runner, "127.0.0.1", port)
    if port:
        await site.start()
    try:
        yield f"localhost:{port}" if port else f"unix:{path}", asked
    finally:
        await runner.cleanup()


async def send(made: Rig, method: str, path: str, headers: str = "", body: bytes = b"") -> bytes:
    length = f"content-length: {len(body)}\r\n" if body or method == "POST" else ""
    return await made.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}{length}\r\n".encode() + body)


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def bearer(text: str) -> str:
    return f"authorization: Bearer {text}\r\n"


async def key(made: Rig, keys: PlayedKeys, tenant: str) -> str:
    text = keys.make(tenant)

    def known() -> bool:
        watch = made.picker.keys
        found = watch.current() if watch is not None else None
        return found is not None and found.get(text[3:11]) is not None

    await until(known)
    return text


async def test_the_service_learns_from_a_grant_who_asks(tmp_path: Path) -> None:
    keys = PlayedKeys()
    async with service(tmp_path) as (address, asked), rig(answer_json, keys=keys, batches=address) as made:
        text = await key(made, keys, "blue")
        forged = f"{HEADER}: {sign(Grant(tenant='red', credential='', expires_unix_s=1 << 40), KEY)}\r\n"
        for method, path in (
            ("POST", "/v1/files"), ("GET", "/v1/files?limit=3"), ("GET", "/v1/files/file-1"),
            ("DELETE", "/v1/files/file-1"), ("GET", "/v1/files/file-1/content"), ("POST", "/v1/batches"),
            ("GET", "/v1/batches"), ("GET", "/v1/batches/b_1"), ("POST", "/v1/batches/b_1/cancel"),
            ("GET", "/p/run-7/v1/files/file-1"),
        ):  # fmt: skip
            asked.clear()
            assert status(await send(made, method, path, bearer(text) + forged)) == 200
            (request,) = asked
            assert request.raw_path == path.removeprefix("/p/run-7")
            grant = verify(request.headers[HEADER], PUBLIC, time.time())
            assert (grant.tenant, grant.credential) == ("blue", text[3:11])
            assert grant.may_call == ((method, path) == ("POST", "/v1/batches"))
            # The key itself goes no further.
            assert not any(text in each for each in request.headers.values())
        asked.clear()
        assert status(await send(made, "GET", "/v1/files")) == 401
        assert status(await send(made, "GET", "/v1/files", bearer("as_unknown"))) == 401
        assert status(await send(made, "PUT", "/v1/files", bearer(text))) == 405
        assert asked == []
        assert made.engines[0].requests == []


async def test_a_grant_for_calls_is_a_credential_of_class_batch_until_its_key_is_revoked(tmp_path: Path) -> None:
    keys = PlayedKeys()
    async with service(tmp_path) as (address, asked), rig(answer_json, keys=keys, batches=address) as made:
        text = await key(made, keys, "blue")
        await send(made, "POST", "/v1/batches", bearer(text))
        await send(made, "GET", "/v1/batches", bearer(text))
        grant, for_one_request = (request.headers[HEADER] for request in asked)
        chat = "x-agentserving-program-id: b_1\r\n"

        async def ticket_of_call() -> str:
            answer = await send(made, "POST", "/v1/chat/completions", bearer(grant) + chat, CHAT)
            assert status(answer) == 200
            # A leader that is slow admits no call in time, and it goes without one.
            return value(made.engines[0].requests[-1], "x-session-id")

        signed = await eventually_async(ticket_of_call)
        ticket = verify_ticket(signed, KEYS, engine_id="e0", now_unix_s=0).ticket
        assert (ticket.tenant, ticket.program_id, ticket.service_class) == ("blue", "b_1", 3)
        assert not any(grant.encode() in served for served in made.engines[0].requests)
        # What asks for a better class is refused, as with a key of class batch.
        better = bearer(grant) + "x-agentserving-service: interactive\r\n"
        assert status(await send(made, "POST", "/v1/chat/completions", better, CHAT)) == 403
        # It opens no files, and makes no other batches.
        asked.clear()
        for path in ("/v1/files", "/v1/batches"):
            assert status(await send(made, "POST", path, bearer(grant))) == 403
        assert asked == []
        wrong = await send(made, "POST", "/v1/chat/completions", bearer(for_one_request) + chat, CHAT)
        assert status(wrong) == 401
        assert b"not for calls" in wrong
        keys.revoke(text)

        async def is_refused() -> bool:
            return status(await send(made, "POST", "/v1/chat/completions", bearer(grant) + chat, CHAT)) == 401

        await eventually_async(is_refused)


@pytest.mark.parametrize("grant", [
    "asg_", "asg_AAAA", "asg_%s" % ("A" * 4000),
    sign(Grant(tenant="blue", credential="", expires_unix_s=1 << 40, may_call=True), KEY),
    sign(Grant(tenant="blue", credential="unknown1", expires_unix_s=1 << 40, may_call=True), KEY),
    sign(Grant(tenant="blue", credential="jwt:a:b", expires_unix_s=1, may_call=True), KEY),
])  # fmt: skip
async def test_other_grants_open_nothing(grant: str) -> None:
    async with rig(answer_json, keys=PlayedKeys()) as made:
        await until(lambda: made.picker.authenticator.is_ready)
        assert status(await send(made, "POST", "/v1/chat/completions", bearer(grant), CHAT)) == 401
        assert made.engines[0].requests == []


async def test_a_batch_does_not_lose_its_lines_to_a_gateway_that_may_not_know_its_key_yet() -> None:
    """The service writes 401 as the line's result, and tries again after 503."""
    grant = sign(Grant(tenant="blue", credential="of-batch", expires_unix_s=1 << 40, may_call=True), KEY)
    for is_current, expected in ((False, 503), (True, 401)):
        authenticator = Authenticator(
            lambda: KeySet([]), grants=Grants(lambda: [KEY]), is_current=lambda is_current=is_current: is_current
        )
        with pytest.raises(HttpError) as caught:
            authenticator.client_of({"authorization": f"Bearer {grant}"})
        assert (caught.value.status, caught.value.retry_after_s > 0) == (expected, expected == 503)


async def test_without_keys_the_tenant_is_default_and_without_a_service_there_is_no_route(tmp_path: Path) -> None:
    # By name, as a Service of Kubernetes.
    (port,) = free_ports(1)
    async with service(tmp_path, port) as (address, asked), rig(answer_json, batches=address) as made:
        assert status(await send(made, "GET", "/v1/batches")) == 200
        grant = verify(asked[0].headers[HEADER], PUBLIC, time.time())
        assert (grant.tenant, grant.credential) == ("default", "")
        assert grant.expires_unix_s < time.time() + CALLS_S
    async with rig(answer_json) as made:
        assert status(await send(made, "GET", "/v1/batches")) == 404
