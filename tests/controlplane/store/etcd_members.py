"""A real etcd of several members on loopback, whose members lose their volumes and rejoin."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from agentserving_cli.local.cluster import find_etcd
from agentserving_cli.local.ports import free_ports


class EtcdMembers:
    """`start` all, then `lose` and `rejoin` one; `close` ends every process and removes the data."""

    def __init__(self, *flags: str, count: int = 3) -> None:
        self._flags = flags
        self._home = Path(tempfile.mkdtemp(prefix="agentserving-etcd-"))
        ports = free_ports(2 * count)
        self._ports = {f"m{number}": (ports[2 * number], ports[2 * number + 1]) for number in range(count)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(f"127.0.0.1:{client}" for client, _ in self._ports.values())

    def start(self) -> None:
        for name in self._ports:
            self._start(name, "new")
        for name in self._ports:
            self._wait(name)

    def lose(self, name: str) -> None:
        """The member dies and its volume is gone."""
        self._kill(name)
        shutil.rmtree(self._home / name)

    def rejoin(self, name: str) -> None:
        """What an administrator, or the operator, does: remove the lost member, add it as a new one, start it."""
        members = self._etcdctl(name, "member", "list").splitlines()
        member_id = next(line.split(",")[0] for line in members if f" {name}," in line)
        self._etcdctl(name, "member", "remove", member_id)
        add = ("member", "add", name, f"--peer-urls=http://127.0.0.1:{self._ports[name][1]}")
        deadline = time.monotonic() + 60
        while True:
            # etcd refuses it as long as the others have not been connected for some seconds.
            try:
                self._etcdctl(name, *add)
                break
            except subprocess.CalledProcessError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(error.stderr) from error
                time.sleep(0.5)
        self._start(name, "existing")
        self._wait(name)

    def close(self) -> None:
        for name in list(self._processes):
            self._kill(name)
        shutil.rmtree(self._home, ignore_errors=True)

    def _start(self, name: str, state: str) -> None:
        client, peer = self._ports[name]
        initial = ",".join(f"{each}=http://127.0.0.1:{ports[1]}" for each, ports in self._ports.items())
        argv = [
            find_etcd(), f"--name={name}", f"--data-dir={self._home / name}",
            f"--listen-client-urls=http://127.0.0.1:{client}", f"--advertise-client-urls=http://127.0.0.1:{client}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster={initial}", f"--initial-cluster-state={state}", "--log-level=error", *self._flags,
        ]  # fmt: skip
        with (self._home / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(argv, stdout=log, stderr=log)

    def _wait(self, name: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[name][0]}/health", timeout=1) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise TimeoutError((self._home / f"{name}.log").read_text()[-1000:])
            time.sleep(0.1)

    def _etcdctl(self, lost: str, *arguments: str) -> str:
        others = ",".join(f"127.0.0.1:{ports[0]}" for name, ports in self._ports.items() if name != lost)
        command = [str(Path(find_etcd()).with_name("etcdctl")), f"--endpoints={others}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def _kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()
