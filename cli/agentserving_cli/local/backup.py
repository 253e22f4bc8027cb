"""A snapshot of etcd, tried: restored into a directory that is deleted again, served by a real etcd, read by a control
plane as at its start. Nothing of it leaves this machine or remains on it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import httpx

from agentserving_cli.local import commands
from agentserving_cli.local.cluster import find_etcd
from agentserving_cli.local.credentials import Credentials
from agentserving_cli.local.layout import ClusterSpec, choose_ports, component, source_path
from agentserving_cli.local.process import Child
from agentserving_cli.local.reason import reason_in

RESTORE_BOUND_S, READ_BOUND_S = 300.0, 600.0


class BackupUnusableError(RuntimeError):
    """The file cannot be restored, or nothing can read what it contains; the message gives the reason."""


def find_restorer(etcd: str) -> list[str]:
    """The command that makes etcd's data of a snapshot: etcdutl, or the etcdctl of etcd 3.5 and older.

    In the directory of that etcd, else on PATH. BackupUnusableError when there is none.
    """
    for name in ("etcdutl", "etcdctl"):
        found = shutil.which(name, path=str(Path(etcd).parent)) or shutil.which(name)
        if found and (name == "etcdutl" or _restores(found)):
            return [found]
    raise BackupUnusableError(
        f"no etcdutl in the directory of {etcd} or on PATH: install the one of your etcd's version"
    )


def _restores(etcdctl: str) -> bool:
    """Whether it still can: 3.6 has left that to etcdutl."""
    listed = subprocess.run([etcdctl, "snapshot", "--help"], capture_output=True, text=True, check=False)
    return "restore" in listed.stdout


async def check(snapshot: Path, prefix: str = "") -> list[dict[str, Any]]:
    """A report of each cluster in the snapshot, or of the one with this prefix (agentserving_controlplane.backup).

    BackupUnusableError, StartFailedError (no etcd, or it does not start on the data).
    """
    etcd = find_etcd()
    restorer = find_restorer(etcd)
    with tempfile.TemporaryDirectory(prefix="agentserving-backup-") as directory:
        home = Path(directory)
        # `up` starts its etcd on a directory of this name as a new cluster of one member.
        await _run([*restorer, "snapshot", "restore", str(snapshot.absolute()), "--data-dir", str(home / "etcd")])
        # With certificates: ids and hashes of keys are not for other users of this machine.
        Credentials(home).make()
        spec = ClusterSpec(home, engines=0)
        command = commands.etcd(spec, etcd, home, choose_ports(spec))
        child = Child(
            name="etcd", argv=list(command.argv), env=command.env, log=home / "etcd.log", ports=command.ports,
            ready=lambda: _answers(command),
        )  # fmt: skip
        try:
            await child.start()
            await child.wait_ready()
            return await _read(home, command.ports[0], prefix)
        finally:
            await child.stop()


async def _run(argv: list[str]) -> None:
    done = await asyncio.to_thread(
        subprocess.run, argv, capture_output=True, text=True, check=False, timeout=RESTORE_BOUND_S
    )
    if done.returncode:
        why = reason_in(done.stderr) or f"{Path(argv[0]).name} ended with status {done.returncode}"
        raise BackupUnusableError(f"the snapshot cannot be restored: {why}")


async def _answers(command: commands.Command) -> bool:
    assert command.certificates is not None
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=2.0, verify=command.certificates.context()) as client:
            return (await client.get(command.ready_url)).status_code == 200
    except httpx.HTTPError:
        return False


async def _read(home: Path, port: int, prefix: str) -> list[dict[str, Any]]:
    """What a control plane finds in that etcd."""
    own = Credentials(home).etcd
    argv = component(
        "agentserving_controlplane.backup", "--store", "etcd", "--etcd-endpoints", f"127.0.0.1:{port}",
        "--etcd-tls-ca", str(own.ca), "--etcd-tls-cert", str(own.cert), "--etcd-tls-key", str(own.key),
        "--only-prefix", prefix,
    )  # fmt: skip
    reading = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={"PYTHONPATH": source_path()}
    )
    try:
        out, err = await asyncio.wait_for(reading.communicate(), READ_BOUND_S)
    finally:
        if reading.returncode is None:
            reading.kill()
            await reading.wait()
    if not out:
        raise BackupUnusableError(f"the restored store cannot be read: {reason_in(err.decode()) or err.decode()}")
    found: list[dict[str, Any]] = json.loads(out)
    return found
