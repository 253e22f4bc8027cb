"""The operator is healthy while it makes progress; when one of its tasks fails, the process ends with the reason."""

from __future__ import annotations

import asyncio
import datetime
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import agentserving
import pytest
import structlog
import yaml
from agentserving_operator import __main__ as main
from agentserving_operator.__main__ import PREFIX, ImageOptions, Operator, Settings, now, serve
from agentserving_operator.api_server import ApiServer
from agentserving_operator.handlers import ClusterEvents
from agentserving_operator.rounds import Rounds
from agentserving_operator.visits import Visits
from agentserving_operator.watches import WATCHED, Watch
from agentserving_process import options, supervision
from agentserving_process.backoff import Backoff
from agentserving_process.probes import ProbeOptions

IMAGES = ["--image", "a", "--vllm-image", "v", "--etcd-image", "e"]


def settings(*flags: str, environment: dict[str, str] | None = None) -> Settings:
    return options.parse(Settings, prog="test", argv=[*IMAGES, *flags], environment=environment or {}, prefix=PREFIX)


@pytest.fixture
def api_flags(tmp_path: Path) -> list[str]:
    """Flags for an API server that does not listen."""
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    document = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [cluster], "contexts": [context],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }  # fmt: skip
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(document))
    return ["--kubeconfig", str(tmp_path / "kubeconfig")]


@pytest.mark.parametrize(("age_s", "ok"), [(0, True), (29, True), (31, False)])
async def test_health_is_the_time_since_the_last_progress(age_s: float, ok: bool, api_flags: list[str]) -> None:
    given = settings("--stuck-s", "30", *api_flags)
    async with await ApiServer.connect(given.kubeconfig) as api:
        operator = Operator(settings=given, api=api, stop=asyncio.Event().wait)  # type: ignore[arg-type]
        operator.visits.progress_at = time.monotonic() - age_s
        # An operator that stands by has nothing to visit.
        assert operator.health().ok
        operator.works = True
        assert operator.health().ok is ok


def test_times_are_as_kubernetes_stores_them() -> None:
    assert datetime.datetime.strptime(now(), "%Y-%m-%dT%H:%M:%SZ")


def test_flags_and_variables_are_read() -> None:
    given = settings("--namespaces", " a, b,,", environment={f"{PREFIX}_ROUND_S": "7", f"{PREFIX}_HTTP_PORT": "80"})
    assert (given.namespaces, given.round_s, given.probes.http_port) == (("a", "b"), 7.0, 80)


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--lease", "name"], "must be namespace/name"), (["--round-s", "0"], "not greater than 0")],
)
def test_flags_that_make_no_sense_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        settings(*flags)
    assert message in capsys.readouterr().err


def test_images_are_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse(Settings, prog="test", argv=[], environment={}, prefix=PREFIX)
    assert "--image is required" in capsys.readouterr().err


def test_it_has_the_version_of_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["agentserving-operator", "--version"])
    with pytest.raises(SystemExit, match=r"^0$"):
        main.main()
    assert capsys.readouterr().out == f"agentserving-operator {agentserving.__version__}\n"


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


async def failing(*_: object) -> None:
    raise RuntimeError("injected")


async def returning(*_: object) -> None:
    """A background task that ends without an error is as lost as one that fails."""


TASKS = [(Visits, "run", "visits"), (Rounds, "run", "rounds"), (Watch, "run", f"watch {WATCHED[0]}")]


@pytest.mark.parametrize(("cls", "method", "task"), TASKS, ids=[task for *_, task in TASKS])
@pytest.mark.parametrize("how", [failing, returning])
def test_a_background_task_that_ends_ends_the_process_with_a_reason(
    cls: type, method: str, task: str, how: Any, api_flags: list[str], monkeypatch: pytest.MonkeyPatch,
    logged: list[Any],
) -> None:  # fmt: skip
    monkeypatch.setattr(cls, method, how)
    given = settings(*api_flags)
    assert supervision.run(lambda supervisor: serve(given, supervisor)) == supervision.TASK_FAILED
    (ending,) = (each for each in logged if each["event"] == "ended because a task failed")
    assert ending["task"].startswith(task.partition(" ")[0])
    assert ("injected" in ending["reason"]) is (how is failing)


def test_kopf_is_started_again_after_a_failure(
    api_flags: list[str], monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    """It fails when the API server does; rounds find meanwhile what has changed."""
    given, runs = settings(*api_flags), 0

    async def until_stopped(supervisor: supervision.Supervisor) -> int:
        async def fails_twice(_: ClusterEvents) -> None:
            nonlocal runs
            runs += 1
            if runs <= 2:
                raise RuntimeError("injected")
            supervisor.stop()
            await asyncio.Event().wait()

        monkeypatch.setattr(ClusterEvents, "run", fails_twice)
        return await serve(given, supervisor)

    monkeypatch.setattr(main, "KOPF_RESTART", Backoff(first_s=0.01, max_s=0.01))
    assert supervision.run(until_stopped) == supervision.OK
    assert [each["task"] for each in logged if each["event"] == "task failed, restarting it"] == ["kopf", "kopf"]


def test_without_access_to_an_api_server_it_says_so(
    tmp_path: Path, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given = settings("--kubeconfig", str(tmp_path / "missing"))
    assert supervision.run(lambda supervisor: serve(given, supervisor)) == supervision.CANNOT_START
    assert "no access to a Kubernetes API server" in logged[-1]["error"]


async def test_a_stop_ends_an_operator_that_waits_for_its_lease(
    api_flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings("--lease", "ns/name", *api_flags)
    stop, waiting = asyncio.Event(), asyncio.Event()

    async def never_leads(*_: object) -> None:
        waiting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(main, "lead", never_leads)

    async def stopped() -> None:
        await stop.wait()

    async with await ApiServer.connect(given.kubeconfig) as api:
        operator = Operator(settings=given, api=api, stop=stopped)
        task = asyncio.create_task(main.work_with_lease(operator, "me"))
        await asyncio.wait_for(waiting.wait(), 30)
        stop.set()
        await asyncio.wait_for(task, 30)
    assert not operator.works


def test_probes_have_the_flags_of_all_processes() -> None:
    given = settings("--http-host", "0.0.0.0", "--http-port", "8080")
    assert given.probes == ProbeOptions(http_host="0.0.0.0", http_port=8080)
    assert given.images == ImageOptions(image="a", vllm_image="v", etcd_image="e")


def test_no_client_library_of_kubernetes_is_imported() -> None:
    """`kubernetes` would be a fifth of its memory, with the pydantic and requests that come with it."""
    libraries = {"kubernetes", "kubernetes_asyncio", "pykube", "lightkube", "pydantic", "requests"}
    code = f"import agentserving_operator.__main__, sys; print(*sorted({libraries} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == ""
