"""The operator lives as long as it visits, not as long as it answers."""

from __future__ import annotations

import asyncio
import datetime
import getpass
import socket
import time

import aiohttp
import pytest
from agentserving_operator.__main__ import http_app, name_ourselves, names, now, parse
from agentserving_operator.reconcile import Outcome
from agentserving_operator.visits import Visits
from aiohttp import web
from kopf._core.engines.peering import detect_own_id


async def never(namespace: str, name: str) -> Outcome:
    raise AssertionError("nothing is visited here")


async def health(*, leads: bool, age_s: float) -> int:
    """The status of /healthz when the last visit is so long ago; after 30 s it is too long."""
    visits, leading = Visits(never), asyncio.Event()
    visits.settled_at = time.monotonic() - age_s
    if leads:
        leading.set()
    runner = web.AppRunner(http_app(visits, leading, stuck_s=30))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/healthz"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        status = answer.status
    await runner.cleanup()
    return status


@pytest.mark.parametrize(("age_s", "status"), [(0, 200), (29, 200), (31, 503)])
async def test_health_is_the_age_of_the_last_visit(age_s: float, status: int) -> None:
    assert await health(leads=True, age_s=age_s) == status


async def test_who_stands_by_has_nothing_to_visit_and_is_well() -> None:
    assert await health(leads=False, age_s=31) == 200


def test_times_are_as_kubernetes_stores_them() -> None:
    assert datetime.datetime.strptime(now(), "%Y-%m-%dT%H:%M:%SZ")


def test_an_operator_whose_user_has_no_name_still_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 65532")

    monkeypatch.delenv("POD_ID", raising=False)
    monkeypatch.setattr(getpass, "getuser", nobody)
    with pytest.raises(KeyError):
        detect_own_id(manual=False)
    # setenv, so that what is set here is taken back.
    monkeypatch.setenv("POD_ID", "")
    monkeypatch.delenv("POD_ID")
    name_ourselves()
    assert detect_own_id(manual=False) == socket.gethostname()


def test_lists_are_words_between_commas() -> None:
    assert names(" a, b,,") == ("a", "b")
    assert names("") == ()


def test_images_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([])
    assert "--image" in capsys.readouterr().err
