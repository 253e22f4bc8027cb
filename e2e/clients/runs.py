"""Runs a client as its user does, in a home and a directory of its own; nothing is sent to anyone but the cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentserving_cli.local.layout import source_path
from clients.table import PROGRAMS, Client
from integration.local_cluster import Cluster

# A client's start and a few calls of 25k tokens each, on a busy CPU.
BOUND_S = 300


@dataclass(frozen=True, slots=True)
class Done:
    """What a client has left."""

    status: int
    out: str
    work: Path

    def tools_run(self, client: Client) -> bool:
        """Whether the client has carried out a tool call."""
        if client.makes:
            made = self.work / client.makes
            return made.exists() and client.text in made.read_text()
        return int(self._last_line()["tools"]) > 0

    def _last_line(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads([line for line in self.out.splitlines() if line.startswith('{"')][-1])
        return found


class Place:
    """A cluster with one engine, and a directory in which one client runs."""

    def __init__(self, engine: str, cluster: Cluster, client: Client, directory: Path) -> None:
        self.engine, self.cluster, self.client = engine, cluster, client
        self.home, self.work = directory, directory / "work"
        self.work.mkdir()
        installed = client.install()
        self._path = f"{installed}:{os.environ['PATH']}"
        if installed.name == "node_modules":
            self._path = os.environ["PATH"]
            (self.work / "node_modules").symlink_to(installed)
            for script in PROGRAMS.glob("*.mjs"):
                shutil.copy(script, self.work)

    def environment(self, **more: str) -> dict[str, str]:
        """The user's own; under `run` a client needs no more."""
        own = {"PATH": self._path, "HOME": str(self.home), "PYTHONPATH": source_path()}
        return {**own, **self.client.quiet, **more}

    def plain_environment(self, program: str = "") -> dict[str, str]:
        """The `export` lines of `up`, and the row's; with a program, its name is in the base URL."""
        base_url = self.cluster.addresses["gateway"]
        if program:
            base_url = f"{base_url.removesuffix('/v1')}/p/{program}/v1"
        for path, text in self.client.files.items():
            file = self.home / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace("{base_url}", base_url))
        return self.environment(
            OPENAI_BASE_URL=base_url,
            OPENAI_API_KEY=self.cluster.key,
            ANTHROPIC_BASE_URL=base_url.removesuffix("/v1"),
            ANTHROPIC_API_KEY=self.cluster.key,
            AGENTSERVING_CONTROL_PLANE=self.cluster.addresses["control_plane"],
            AGENTSERVING_GATEWAY=self.cluster.addresses["gateway"],
            **{name: value.replace("{base_url}", base_url) for name, value in self.client.environment.items()},
        )

    def under_run(self, name: str, command: Sequence[str]) -> list[str]:
        """The command behind `agentserving run`, as a program of this name."""
        directory = str(self.cluster.directory)
        return [sys.executable, "-m", "agentserving_cli.main", "run", "--state-dir", directory, "--name", name, "--",
                *command]  # fmt: skip

    def command(self, prompt: str = "", *more: str) -> list[str]:
        """The client's command; `more` goes before its prompt."""
        given = self.client.command
        at = given.index("{prompt}")
        return [*given[:at], *more, prompt or self.client.prompt[self.engine], *given[at + 1 :]]

    def plain_command(self) -> list[str]:
        """With the options that it needs without `run`, behind its name or its subcommand."""
        command = self.command()
        return [command[0], *self._subcommand(), *self.client.options, *command[1 + len(self._subcommand()) :]]

    def _subcommand(self) -> list[str]:
        return [self.client.command[1]] if self.client.command[1] in ("run", "exec") else []

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> Done:
        """Runs it to its end."""
        done = subprocess.run(
            command, env=dict(environment), cwd=self.work, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BOUND_S,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, self.work)

    @contextmanager
    def started(self, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
        """Runs it while the block runs; what is left of it then is ended."""
        process = subprocess.Popen(
            command, env=dict(environment), cwd=self.work, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


def programs(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """All programs as `ps -o json` prints them, by id."""
    return {each["program_id"]: each for each in json.loads(cluster.cli("ps", "--all", "-o", "json"))["programs"]}


def calls(program: Mapping[str, Any]) -> int:
    """How many calls it has completed."""
    return int(program["calls_completed"])
