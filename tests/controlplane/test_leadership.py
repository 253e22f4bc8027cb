"""A control plane that loses one of its background tasks says which and why, ends, and leaves the lease to another.

Each test runs the real process; a failure is injected by replacing one function before `main`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentserving.contract.signatures import public_bytes
from agentserving_cli.local.ports import free_ports
from agentserving_controlplane.settings import PlaneSettings, parse
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.store.port import Write
from agentserving_controlplane.table import rows
from agentserving_process.supervision import CANNOT_START, OK, TASK_FAILED
from support.etcd_server import EtcdServer

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(180)]
LEASE_S = 60


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    server = EtcdServer()
    server.start()
    yield server
    server.close()


class Process:
    """`python main.py`: the control plane with an injected failure."""

    def __init__(self, etcd: EtcdServer, directory: Path, injected: str = "") -> None:
        self.directory, self.prefix = directory, f"/{directory.name}"
        self._store = EtcdStore((etcd.endpoint,), self.prefix)
        listen, self._http_port = free_ports(2)
        key = directory / "key"
        key.write_bytes(b"0123456789abcdef")
        script = directory / "main.py"
        script.write_text(
            "import asyncio\nfrom pathlib import Path\nfrom agentserving_controlplane import __main__ as program\n"
            f"second = Path({str(directory / 'second')!r})\n" + textwrap.dedent(injected) + "\nprogram.main()\n"
        )
        self.listen = f"127.0.0.1:{listen}"
        self._argv = [
            sys.executable, str(script), "--listen", self.listen, "--http-port", str(self._http_port),
            "--store", "etcd", "--etcd-endpoints", etcd.endpoint, "--etcd-prefix", self.prefix,
            "--lease-s", str(LEASE_S), "--ticket-key-file", str(key), "--call-idle-s", "0.2",
        ]  # fmt: skip
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self._argv, stderr=subprocess.PIPE, text=True)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._http_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    async def until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while (await asyncio.to_thread(self.get, "/readyz"))[0] != 200:
            assert self.process.poll() is None, self.process.stderr
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    async def ended(self) -> tuple[int, list[dict[str, str]]]:
        """(exit code, log lines)."""
        _, err = await asyncio.to_thread(self.process.communicate, timeout=90)
        return self.process.returncode, [json.loads(line) for line in err.splitlines()]

    async def lease_is_free(self) -> bool:
        """True when another process gets it without waiting for it to expire."""
        try:
            await asyncio.wait_for(self._store.acquire("another control plane"), LEASE_S / 2)
        except TimeoutError:
            return False
        finally:
            await self._store.close()
        return True

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


FAIL_UPKEEP = """
    from agentserving_controlplane.upkeep import Upkeep
    async def tick(self): raise ValueError("injected")
    Upkeep.tick = tick
"""
FAIL_LEASE = """
    from agentserving_controlplane.store.etcd.store import EtcdStore
    async def keep_lease(self): raise ValueError("injected")
    EtcdStore.keep_lease = keep_lease
"""
LEASE_RETURNS = """
    from agentserving_controlplane.store.etcd.store import EtcdStore
    async def keep_lease(self): pass
    EtcdStore.keep_lease = keep_lease
"""
CANCEL_LEASE = """
    from agentserving_controlplane.store.etcd.store import EtcdStore
    async def keep_lease(self): raise asyncio.CancelledError
    EtcdStore.keep_lease = keep_lease
"""
FAIL_COMMIT = """
    from agentserving_controlplane.leadership import Leadership
    from agentserving_controlplane.store.etcd.store import EtcdStore
    from agentserving_controlplane.store.port import Write
    async def commit(self, epoch, writes): raise ValueError("injected")
    EtcdStore.commit = commit
    lead = Leadership.lead
    async def lead_and_write(self, tasks):
        await lead(self, tasks)
        self.plane.commits.put_together([Write("k", b"")])
    Leadership.lead = lead_and_write
"""
FAIL_RECOVERY = """
    from agentserving_controlplane.control_plane import ControlPlane
    async def recover(self, store, decode_policy_message): raise ValueError("injected")
    ControlPlane.recover = recover
"""


@pytest.mark.parametrize(
    ("injected", "task", "reason"),
    [
        (FAIL_UPKEEP, "upkeep", "ValueError: injected"),
        (FAIL_LEASE, "lease", "ValueError: injected"),
        (LEASE_RETURNS, "lease", "returned, although it must run"),
        (CANCEL_LEASE, "lease", "cancelled by something other"),
        (FAIL_COMMIT, "group-commit", "a batch cannot be committed: ValueError: injected"),
        (FAIL_RECOVERY, "leadership", "ValueError: injected"),
    ],
    ids=["upkeep", "lease", "lease returns", "lease is cancelled", "group commit", "recovery"],
)
async def test_a_background_task_that_fails_ends_the_process_with_a_reason_and_frees_the_lease(
    etcd: EtcdServer, tmp_path: Path, injected: str, task: str, reason: str
) -> None:
    process = Process(etcd, tmp_path, injected)
    try:
        code, lines = await process.ended()
        assert code == TASK_FAILED, lines
        failure = next(line for line in lines if line["event"] == "task failed, ending the process")
        assert failure["task"] == task
        assert reason in failure["reason"]
        assert await process.lease_is_free()
    finally:
        process.close()


async def test_a_lost_lease_restarts_the_process_in_place_and_it_leads_again(etcd: EtcdServer, tmp_path: Path) -> None:
    process = Process(
        etcd,
        tmp_path,
        """
        from agentserving_controlplane.store.etcd.store import EtcdStore
        from agentserving_controlplane.store.port import FencedError
        keep = EtcdStore.keep_lease
        async def keep_lease(self):
            if second.exists():
                second.with_name("third").touch()
                await keep(self)
            second.touch()
            raise FencedError("injected")
        EtcdStore.keep_lease = keep_lease
        """,
    )
    try:
        pid = process.process.pid
        deadline = time.monotonic() + 60
        while not (tmp_path / "third").exists():
            assert time.monotonic() < deadline, "it does not lead again"
            await asyncio.sleep(0.05)
        await process.until_ready()
        process.process.send_signal(signal.SIGTERM)
        code, lines = await process.ended()
        assert code == OK
        assert process.process.pid == pid
        assert [line["event"] for line in lines].count("leading") >= 1
        assert {"event": "this control plane leads no longer", "error": "injected"}.items() <= next(
            line for line in lines if "leads no longer" in line["event"]
        ).items()
    finally:
        process.close()


async def test_sigterm_frees_the_lease_and_ends_well(etcd: EtcdServer, tmp_path: Path) -> None:
    process = Process(etcd, tmp_path)
    try:
        await process.until_ready()
        status, page = await asyncio.to_thread(process.get, "/metrics")
        assert status == 200
        assert "agentserving_leader 1.0" in page
        assert "agentserving_task_restarts_total" in page
        process.process.send_signal(signal.SIGTERM)
        code, lines = await process.ended()
        assert code == OK, lines
        assert not [line for line in lines if line["level"] in ("error", "critical")]
        assert await process.lease_is_free()
    finally:
        process.close()


async def test_a_second_process_on_the_same_address_ends_before_it_touches_the_store(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    first = Process(etcd, tmp_path)
    try:
        await first.until_ready()
        second = first.start()
        _, err = await asyncio.to_thread(second.communicate, timeout=60)
        assert second.returncode == CANNOT_START
        assert json.loads(err.splitlines()[-1])["error"] == f"cannot listen on {first.listen}: Address already in use"
        assert (await asyncio.to_thread(first.get, "/readyz")) == (200, "ok: leading\n")
    finally:
        first.close()


async def test_rows_of_a_newer_version_are_a_reason_not_to_start(etcd: EtcdServer, tmp_path: Path) -> None:
    store = EtcdStore((etcd.endpoint,), f"/{tmp_path.name}")
    epoch = await store.acquire("newer")
    await store.commit(epoch, [Write(rows.row_key("t", "p"), b"\x92\xcd\x03\xe7\x80")])
    await store.resign()
    await store.close()
    process = Process(etcd, tmp_path)
    try:
        code, lines = await process.ended()
        assert code == CANNOT_START
        assert "upgrade" in next(line for line in lines if line["event"] == "cannot start")["error"]
        assert await process.lease_is_free()
    finally:
        process.close()


def test_settings_come_by_topic(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    settings = parse(["--ticket-key-file", str(key), "--etcd-prefix", "/x/", "--etcd-endpoints", "a:1, b:2"])
    assert settings.plane == PlaneSettings(ticket_keys=settings.plane.ticket_keys)
    public = [key.public_key().public_bytes_raw() for key in settings.plane.ticket_keys()]
    assert public == [public_bytes(b"0123456789abcdef")]
    assert settings.store.etcd_endpoints == ("a:1", "b:2")
    assert settings.store.etcd_prefix == "/x"
    assert settings.serving.address == "127.0.0.1:7070"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--ticket-key-file", "/nowhere"], "--ticket-key-file: /nowhere: No such file or directory"),
        (["--lease-s", "1"], "--lease-s: 1 is less than 2"),
        (["--program-idle-s", "0"], "--program-idle-s: 0.0 is not greater than 0"),
        (["--listen", "7070"], "'7070' is not an address: expected host:port"),
        (["--store", "etcd", "--etcd-endpoints", ","], "--etcd-endpoints: at least one is needed"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    with pytest.raises(SystemExit):
        parse(["--ticket-key-file", str(key), *argv])
    assert message in capsys.readouterr().err.splitlines()[-1]
