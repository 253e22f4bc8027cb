"""`agentserving record` on a real cluster of simulated engines: the trace has what was sent, and can be replayed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import agentserving
import openai
import pytest
from agentserving_cli.main import main
from agentserving_replay.traces.file import read_trace
from agentserving_replay.traces.trace import Program
from click.testing import CliRunner
from integration.local_cluster import Cluster

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    flags = ("--engine", "simulator", "--engines", "2", "--store", "memory", "--policy", "plas")
    cluster = Cluster(tmp_path_factory.mktemp("recorded") / "state", *flags)
    try:
        yield cluster
    finally:
        cluster.close()


class Recording:
    """The `agentserving record` process, started and recording."""

    def __init__(self, cluster: Cluster, out: Path, *flags: str) -> None:
        self.out, self.log = out, out.with_suffix(".log")
        argv = [sys.executable, "-m", "agentserving_cli.main", "record", "--out", str(out), *flags]
        argv += ["--control-plane", cluster.addresses["control_plane"]]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, "COLUMNS": "200"})
        cluster.wait(lambda: "recording " in self.output() or self.process.poll() is not None)
        assert self.process.poll() is None, self.output()

    def output(self) -> str:
        return self.log.read_text()

    def end(self) -> dict[str, Program]:
        """Ctrl-C; gives the recorded programs by id."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 0, self.output()
        recorded, programs = read_trace(self.out.read_bytes().splitlines())
        assert recorded is not None
        assert (recorded.policy.name, recorded.engines) == ("plas", 2)
        return {program.program_id: program for program in programs}


def ask(cluster: Cluster, prompt: str, tokens: int, **headers: str) -> openai.types.CompletionUsage:
    headers_sent = {f"x-agentserving-{name.replace('_', '-')}": value for name, value in headers.items()}
    url = cluster.addresses["gateway"]
    with openai.OpenAI(base_url=url, api_key="none", default_headers=headers_sent, max_retries=0, timeout=60) as agent:
        usage = agent.completions.create(model="tiny", prompt=prompt, max_tokens=tokens).usage
    assert usage is not None
    return usage


def calls_of(cluster: Cluster, program: str) -> int:
    return int(cluster.program_or_none(program).get("calls_completed", "0"))


def send(cluster: Cluster) -> list[tuple[int, int]]:
    """Sends a chain, a map-reduce by the client library, and calls of an old program, of no program, of a sub-agent.

    Gives (prompt, output) tokens of the chain's calls.
    """
    context, chain = "a secret beginning ", []
    for turn in range(3):
        usage = ask(cluster, context, 20 + turn, program_id="chain", program_name="chatter")
        chain.append((usage.prompt_tokens, usage.completion_tokens))
        context += "and more of the secret " * 20
    address = cluster.addresses["control_plane"]
    agentserving.instrument()
    try:
        with agentserving.program("reader", program_id="mapped", control_plane=address) as program:
            with openai.OpenAI(max_retries=0, timeout=60) as agent:
                agent.completions.create(model="tiny", prompt="which parts?", max_tokens=8)
            with ThreadPoolExecutor(4) as pool:
                maps = [program.fork() for _ in range(4)]

                def read(index: int) -> int:
                    with maps[index], openai.OpenAI(max_retries=0, timeout=60) as agent:
                        usage = agent.completions.create(model="tiny", prompt="part " * 50, max_tokens=9).usage
                        assert usage is not None
                        return usage.completion_tokens

                assert list(pool.map(read, range(4))) == [9] * 4
            program.join(*maps)
            with openai.OpenAI(max_retries=0, timeout=60) as agent:
                agent.completions.create(model="tiny", prompt="put together", max_tokens=5)
    finally:
        agentserving.uninstrument()
    ask(cluster, "still there", 4, program_id="old")
    ask(cluster, "one call, no program", 6)
    ask(cluster, "a sub-agent's call", 7, program_id="chain/sub", parent_program_id="chain")
    return chain


def test_a_recording_has_every_call_with_its_dependencies_and_replays(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", cluster.addresses["gateway"])
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ask(cluster, "before the recording", 3, program_id="old")
    recording = Recording(cluster, tmp_path / "tuesday.jsonl")
    chain = send(cluster)
    cluster.wait(lambda: [calls_of(cluster, p) for p in ("chain", "chain/sub", "mapped", "old")] == [3, 1, 6, 2])
    programs = recording.end()

    assert "3 programs were still open" not in recording.output()
    assert "2 programs were still open: written as if they had ended with the recording" in recording.output()
    assert "1 programs had begun before, with 1 calls since: skipped" in recording.output()
    assert "secret" not in recording.out.read_text()
    assert len(programs) == 3
    assert "old" not in programs
    chained = programs["chain"]
    assert chained.name == "chatter"
    assert [(call.prompt_tokens, call.output_tokens) for call in chained.calls[:3]] == chain
    assert [call.parents for call in chained.calls] == [(), (0,), (1,), (2,)]
    assert [call.extends for call in chained.calls[:3]] == [-1, 0, 1]
    assert [call.thread for call in chained.calls] == ["", "", "", "chain/sub"]
    mapped = programs["mapped"]
    assert [call.output_tokens for call in mapped.calls] == [8, *[9] * 4, 5]
    assert [call.parents for call in mapped.calls] == [(), *[(0,)] * 4, (1, 2, 3, 4)]
    assert len({call.thread for call in mapped.calls[1:5]}) == 4
    (alone,) = (p for p in programs.values() if p.program_id not in ("chain", "mapped"))
    assert [(call.output_tokens, call.parents) for call in alone.calls] == [(6, ())]
    assert chained.arrival_s <= mapped.arrival_s <= alone.arrival_s

    replayed = CliRunner().invoke(main, ["replay", str(recording.out), "--policy", "recorded", "--policy", "fcfs"])
    assert replayed.exit_code == 0, replayed.output
    assert "3 programs on 2 x a100-80gb, llama-3.1-8b" in replayed.output


def test_a_recording_ends_after_its_duration_and_fails_without_programs(cluster: Cluster, tmp_path: Path) -> None:
    recording = Recording(cluster, tmp_path / "short.jsonl", "--for", "6s")
    ask(cluster, "open when it ends", 3, program_id="left-open")
    assert recording.process.wait(30) == 0, recording.output()
    again = Recording(cluster, tmp_path / "empty.jsonl", "--for", "1s", "--closed-only")
    assert again.process.wait(30) == 1
    assert "no program was recorded" in again.output()
    assert not again.out.exists()


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--for", "never", "--out", "x.jsonl"], "'never' is not a duration: write 90s, 10m or 2h"),
        (["--out", "there.jsonl"], "there.jsonl: the file already exists; name a new one"),
        (["--out", "no/such/folder.jsonl"], "no/such/folder.jsonl: No such file or directory"),
        (["--out", "x.jsonl", "--control-plane", "nowhere"], "'nowhere' is not the address of a control plane"),
    ],
)
def test_a_recording_that_cannot_be_written_is_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").write_text("kept")
    address = [] if "--control-plane" in args else ["--control-plane", cluster.addresses["control_plane"]]
    result = CliRunner().invoke(main, ["record", *args, *address])
    assert result.exit_code != 0
    assert error in " ".join(result.output.split())
    assert (tmp_path / "there.jsonl").read_text() == "kept"
