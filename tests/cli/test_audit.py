"""`agentserving audit` and `kubectl agentserving audit`: the lines of real control planes, wherever their logs are."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import structlog
from agentserving.contract.identity import Role
from agentserving.v1 import program_service_pb2 as pb
from agentserving.v1 import program_service_pb2_grpc as rpc
from agentserving_cli import main as local
from agentserving_cli.audit_log import AuditLine, Wanted, chosen, duration, read
from agentserving_cli.kube import main as kube
from agentserving_cli.kube.clusters import RESOURCE
from agentserving_process import logs
from click.testing import CliRunner
from controlplane.guarded_plane import a_key, bearer, guarded
from hypothesis import given
from hypothesis import strategies as st
from support.eventually import DEADLINE_S
from support.kubectl_stand_in import install

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def line(minutes_ago: float = 0, **fields: str) -> str:
    when = (datetime.now(UTC) - timedelta(minutes=minutes_ago)).isoformat().replace("+00:00", "Z")
    known = {"who": "k3v9x0qa", "role": "client", "tenant": "acme", "method": "ProgramService.OpenProgram"}
    known |= {"object": "program/p", "outcome": "OK", "peer": "ipv4:10.0.0.1:4711", "request_id": ""}
    return json.dumps({**known, "event": "audit", "level": "info", "timestamp": when, **fields})


def run(command: object, *arguments: str, stdin: str = "") -> str:
    done = CliRunner().invoke(command, ["audit", *arguments], input=stdin)  # type: ignore[arg-type]
    assert done.exit_code == 0, done.output
    return done.output


@contextmanager
def logging_to(stream: io.StringIO) -> Iterator[None]:
    """As a process logs."""
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure(stream)
    try:
        yield
    finally:
        structlog.configure(**before)
        root.handlers[:] = handlers
        root.setLevel(level)


async def test_what_a_control_plane_writes_is_what_the_command_shows() -> None:
    written, acme, admin = io.StringIO(), a_key("acme"), a_key(role=Role.ADMIN)
    with logging_to(written):
        async with guarded(None, two_ports=False, bootstrap_keys=(acme.row, admin.row)) as plane:
            programs = rpc.ProgramServiceStub(await plane.parts())
            await programs.OpenProgram(
                pb.OpenProgramRequest(program_id="run-7"), metadata=bearer(acme.text), timeout=DEADLINE_S
            )
            with pytest.raises(grpc.aio.AioRpcError):
                await programs.OpenProgram(pb.OpenProgramRequest(), metadata=bearer("as_nobody_x"), timeout=DEADLINE_S)
    found = json.loads(run(local.main, "-f", "-", "-o", "json", stdin=written.getvalue()))
    assert [(each["method"], each["object"], each["outcome"]) for each in found] == [
        ("ProgramService.OpenProgram", "program/run-7", "OK"),
        ("ProgramService.OpenProgram", "", "UNAUTHENTICATED"),
    ]
    assert found[0]["who"] == acme.row.key_id
    assert acme.text not in written.getvalue()
    table = run(local.main, "-f", "-", "-o", "wide", "--refused", stdin=written.getvalue())
    assert "UNAUTHENTICATED UNKNOWN_KEY" in table
    assert "run-7" not in table
    narrow = run(local.main, "-f", "-", stdin=written.getvalue())
    assert max(map(len, narrow.splitlines())) <= 80
    assert "UNAUTHENTICATED" in narrow


def test_logs_of_the_local_cluster_are_read_in_the_order_of_time(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    one, two = tmp_path / "logs" / "control-plane-1.log", tmp_path / "logs" / "control-plane-2.log"
    one.write_text("\n".join(["Traceback", line(90, object="old"), line(30, object="b"), line(10, object="d")]) + "\n")
    two.write_text(line(40, object="a") + "\n" + line(20, object="c", tenant="globex") + '\n{"event": "audit", "ti')
    state = ("--state-dir", str(tmp_path), "-o", "json")
    assert [each["object"] for each in json.loads(run(local.main, *state))] == ["a", "b", "c", "d"]
    assert [each["object"] for each in json.loads(run(local.main, *state, "--since", "25m"))] == ["c", "d"]
    assert [each["object"] for each in json.loads(run(local.main, *state, "--tenant", "globex"))] == ["c"]
    assert "nothing was changed or refused" in run(local.main, "--state-dir", str(tmp_path), "--tenant", "none")


def test_without_logs_or_with_a_bad_duration_the_command_says_what_to_do(tmp_path: Path) -> None:
    done = CliRunner().invoke(local.main, ["audit", "--state-dir", str(tmp_path)])
    assert (done.exit_code, "agentserving up" in done.output, "--file" in done.output) == (1, True, True)
    done = CliRunner().invoke(local.main, ["audit", "--since", "an hour"])
    assert (done.exit_code, "write 90s, 15m, 1h or 2d" in done.output) == (2, True)


def test_the_plugin_reads_the_logs_of_every_part_that_writes_audit_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("KUBECTL_ANSWERS", str(tmp_path))
    cluster = {"metadata": {"name": "demo", "namespace": "x"}, "spec": {}, "status": {}}
    (tmp_path / f"{RESOURCE}.json").write_text(json.dumps({"items": [cluster]}))
    (tmp_path / "logs").write_text("[pod/demo-control-plane-0/control-plane] " + line(5) + "\n" + line(1) + "\n")
    assert len(json.loads(run(kube.main, "-n", "x", "--since", "90s", "-o", "json"))) == 4
    assert len(json.loads(run(kube.main, "-n", "x", "-o", "json"))) == 8
    asked = [json.loads(each) for each in (tmp_path / "asked").read_text().splitlines()]
    logs_of = [words for words in asked if "logs" in words][:4]
    assert all("--since=90s" in words for words in logs_of)
    for words, component, container in zip(
        logs_of,
        ("control-plane", "gateway", "engine", "batches"),
        ("control-plane", "picker", "sidecar", "batches"),
        strict=True,
    ):
        assert any(word.endswith(f"component={component}") for word in words)
        assert words[words.index("-c") + 1] == container
    (tmp_path / "logs").unlink()
    done = CliRunner().invoke(kube.main, ["audit", "-n", "x"])
    assert done.exit_code == 1, "kubectl failed"


WRITTEN = line()


@given(st.lists(st.one_of(st.text(), st.text().map(lambda text: '"audit"' + text), st.just(WRITTEN)), max_size=8))
def test_whatever_else_is_in_a_log_is_passed_over(lines: list[str]) -> None:
    assert len(list(read(lines))) == lines.count(WRITTEN)
    assert not list(read([each[: len(each) // 2] for each in lines]))


@given(st.text(max_size=8))
def test_a_duration_is_understood_or_refused(text: str) -> None:
    if re.fullmatch(r"[0-9]{1,6}[smhd]", text, re.ASCII):
        assert duration(text) >= timedelta()
    else:
        with pytest.raises(ValueError, match="write 90s"):
            duration(text)


def test_lines_are_chosen_by_time_tenant_key_and_outcome() -> None:
    lines = [
        AuditLine(NOW - timedelta(minutes=age), {"tenant": tenant, "who": who, "outcome": outcome})
        for age, tenant, who, outcome in ((9, "a", "k", "OK"), (5, "a", "k", "OK"), (4, "b", "l", "NOT_FOUND"))
    ]
    since = NOW - timedelta(minutes=6)
    assert chosen(lines, Wanted(since=since)) == lines[1:]
    assert chosen(lines, Wanted(since=since, tenant="a")) == lines[1:2]
    assert chosen(lines, Wanted(since=since, who="l")) == lines[2:]
    assert chosen(lines, Wanted(since=since, refused=True)) == lines[2:]
