"""Who may enter an engine: one HTTP request for each ticket, with the salt of the ticket's tenant."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from agentserving.contract.ids import Tenant
from agentserving.contract.policy import Accounting
from agentserving_engine.calls import CallBook, TicketCheck, Unticketed
from agentserving_engine.calls.salts import salt_of
from agentserving_engine.http.dialects import Dialect
from agentserving_engine.http.entrance import Entrance, RefusedEntryError
from agentserving_engine.http.middleware import Message, serve
from engine.calls.tickets import KEYS, gateway_ticket, ticket
from hypothesis import given
from hypothesis import strategies as st

REFUSE = TicketCheck(engine_id="e", keys=lambda: KEYS, unticketed=Unticketed.REFUSE, boot_id="b2")
LAST = replace(REFUSE, unticketed=Unticketed.LAST)
BODY = {"messages": [{"role": "user", "content": "hi"}], "n": 2}


def entrance(check: TicketCheck = REFUSE, *, separate_caches: bool = True) -> Entrance:
    return Entrance(lambda: check, separate_caches=separate_caches)


async def answer(
    door: Entrance, session: str | None, body: object, dialect: Dialect = Dialect.OPENAI
) -> tuple[int, dict[str, object], Message]:
    """(status, body of the answer, what the application has seen: its headers and body)."""
    seen: Message = {}
    sent: list[Message] = []

    async def application(scope: Message, receive: object, send: object) -> None:
        message = await receive()  # type: ignore[operator]
        if message["type"] != "http.request":
            return
        seen["headers"], seen["body"] = scope["headers"], message["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b"{}", "more_body": False})  # type: ignore[operator]

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [] if session is None else [(b"X-Session-Id", session.encode())]
    scope: Message = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    await serve(application, scope, receive, send, dialect=dialect, keep_alive_s=0, entrance=door)
    return sent[0]["status"], json.loads(sent[1]["body"]), seen


@pytest.mark.parametrize(
    ("session", "code"),
    [
        (None, "ticket_missing"),
        ("", "ticket_missing"),
        ("forged", "ticket_malformed"),
        (ticket(expires=1), "ticket_expired"),
        (ticket(engine_id="other", expires=1 << 40), "ticket_wrong_engine"),
        (ticket(expires=1 << 40, boots=("b1",)), "ticket_wrong_boot"),
    ],
)
@pytest.mark.parametrize("dialect", [Dialect.OPENAI, Dialect.MESSAGES])
async def test_where_tickets_are_required_a_call_without_a_good_one_is_a_403(
    session: str | None, code: str, dialect: Dialect
) -> None:
    status, document, seen = await answer(entrance(), session, BODY, dialect)
    assert (status, seen) == (403, {})
    error = document["error"]
    assert isinstance(error, dict)
    assert "gateway" in str(error["message"])
    if dialect is Dialect.OPENAI:
        assert error["code"] == code


async def test_a_ticket_is_good_once_and_not_after_a_restart() -> None:
    door, text = entrance(), ticket(expires=1 << 40, boots=("b2",))
    assert (await answer(door, text, BODY))[0] == 200
    assert (await answer(door, text, BODY))[1]["error"]["code"] == "ticket_replayed"  # type: ignore[index]
    after_restart = entrance(replace(REFUSE, boot_id="b3"))
    assert (await answer(after_restart, text, BODY))[1]["error"]["code"] == "ticket_wrong_boot"  # type: ignore[index]


async def test_where_they_are_not_required_a_used_ticket_is_left_to_the_scheduler_which_counts_it() -> None:
    door, book = entrance(LAST), CallBook(LAST)
    text = ticket(expires=1 << 40)
    managed = []
    for name in ("chatcmpl-c-0123abcd", "chatcmpl-c-89abcdef"):
        _, _, seen = await answer(door, text, BODY)
        session = dict(seen["headers"])[b"x-session-id"].decode()
        managed.append(book.arrive(name, session, 0, 0.0, Accounting.SUM).managed)
    assert managed == [True, False]
    assert book.rejections.by_reason == {"replayed": 1}


@pytest.mark.parametrize(("tenant", "salted"), [("acme", True), ("default", False)])
async def test_vllm_gets_the_salt_of_the_tickets_tenant(tenant: str, salted: bool) -> None:
    for made in (ticket, gateway_ticket):
        _, _, seen = await answer(entrance(), made("p.1.0", tenant=tenant, expires=1 << 40), BODY)
        body = json.loads(seen["body"])
        assert body.pop("cache_salt", "") == (salt_of(tenant) if salted else "")
        assert body == BODY
    _, _, seen = await answer(entrance(separate_caches=False), ticket(tenant=tenant, expires=1 << 40), BODY)
    assert json.loads(seen["body"]) == BODY


@given(st.text(), st.text())
def test_tenants_share_a_salt_only_with_themselves(one: str, other: str) -> None:
    if one != other and salt_of(one):
        assert salt_of(one) != salt_of(other)


def test_a_refusal_says_what_to_do_and_is_logged_at_a_bounded_rate() -> None:
    door = entrance()
    for _ in range(50):
        with pytest.raises(RefusedEntryError, match="gateway"):
            door.enter("forged", 0, 0.0)
    assert door.rejections.total == 50
    assert len(door.rejections.take_lines()) == 1


def test_a_ticket_of_a_tenant_names_that_tenant_to_the_scheduler() -> None:
    entry = entrance().enter(gateway_ticket("c", tenant="acme"), 0, 0.0)
    facts = CallBook(REFUSE).arrive("r", entry.session_id, 0, 0.0, Accounting.SUM)
    assert (facts.program.tenant, facts.managed) == (Tenant("acme"), False)
