"""The gateway as a process: a failed background task ends it with a reason, a failed handler does not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from agentserving_gateway import __main__ as gateway
from agentserving_gateway.admission import Admission
from agentserving_process import options, supervision
from gateway.gateway_rig import answer_json, rig, until


def settings(*argv: str) -> gateway.Settings:
    return options.parse(gateway.Settings, prog="gateway", argv=argv, environment={})


def test_a_failed_admission_task_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(self: Admission) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(Admission, "run", fails)
    chosen = settings("--listen", "127.0.0.1:0")
    assert supervision.run(lambda supervisor: gateway.serve(chosen, supervisor)) == supervision.TASK_FAILED


async def test_a_set_of_engines_that_cannot_be_digested_breaks_one_stream_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig(answer_json) as made:
        digest, failures = made.admission._engines.replace, 0

        def fails_once(engines: object) -> None:
            nonlocal failures
            failures += 1
            if failures == 1:
                raise RuntimeError("injected")
            digest(engines)  # type: ignore[arg-type]

        monkeypatch.setattr(made.admission._engines, "replace", fails_once)
        made.link.cut()
        await until(lambda: failures >= 2 and made.admission.connected)
        assert (await made.post()).startswith(b"HTTP/1.1 200")
        await until(lambda: made.plane.table.open_calls == 1)


@pytest.mark.parametrize(
    ("listen", "said"),
    [("[::1]:99999", "not an address"), ("::1:80", "write an IPv6 address as"), ("nonsense", "expected host:port")],
)
def test_an_address_that_makes_no_sense_is_refused_with_its_reason(listen: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agentserving_gateway", "--listen", listen], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert said in done.stderr


def test_a_port_that_cannot_be_opened_is_named_with_the_cause() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agentserving_gateway", "--listen", "192.0.2.1:8080"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == supervision.CANNOT_START
    (line,) = [json.loads(each) for each in done.stderr.splitlines() if "cannot start" in each]
    assert line["error"] == "cannot listen on 192.0.2.1:8080: Cannot assign requested address"
