"""The picker and the front as processes: a failed background task ends the picker with a reason, a handler does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from agentserving_gateway import __main__ as picker
from agentserving_gateway.admission import Admission
from agentserving_gateway.picker import Picker
from agentserving_process import options, supervision
from gateway.gateway_rig import answer_json, rig, until, value


def test_a_failed_admission_task_ends_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def fails(self: Admission) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(Admission, "run", fails)
    argv = ("--run-dir", str(tmp_path))
    chosen = options.parse(picker.Settings, prog="picker", argv=argv, environment={})
    assert supervision.run(lambda supervisor: picker.serve(chosen, supervisor)) == supervision.TASK_FAILED


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


async def test_a_request_whose_decision_fails_is_served_without_a_ticket(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(self: Picker, *_: object) -> None:
        raise RuntimeError("injected")

    async with rig(answer_json) as made:
        with monkeypatch.context() as patched:
            patched.setattr(Picker, "pick", fails)
            assert (await made.post()).startswith(b"HTTP/1.1 200")
        assert value(made.engines[0].requests[-1], "x-session-id") == ""
        assert (await made.post()).startswith(b"HTTP/1.1 200")
        assert value(made.engines[0].requests[-1], "x-session-id")


def front(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentserving_gateway.front", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("listen", "said"),
    [("[::1]:99999", "not an address"), ("::1:80", "write an IPv6 address as"), ("nonsense", "expected host:port")],
)
def test_an_address_that_makes_no_sense_is_refused_with_its_reason(listen: str, said: str, tmp_path: Path) -> None:
    done = front("--listen", listen, "--run-dir", str(tmp_path))
    assert done.returncode == 2
    assert said in done.stderr


def test_a_port_that_cannot_be_opened_is_named_with_the_cause(tmp_path: Path) -> None:
    done = front("--listen", "192.0.2.1:8080", "--run-dir", str(tmp_path))
    assert done.returncode == 1
    assert "cannot bind '192.0.2.1:8080': Cannot assign requested address" in done.stderr


def test_a_missing_envoy_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    done = front("--envoy", str(tmp_path / "none"), "--run-dir", str(tmp_path))
    assert done.returncode == 1
    assert str(tmp_path / "none") in done.stderr
