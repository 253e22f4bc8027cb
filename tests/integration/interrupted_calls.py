"""Calls of a real engine that are preempted in the middle of their answer, and the same calls left alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
from agentserving.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    program_service_pb2,
    program_service_pb2_grpc,
    types_pb2,
)
from integration.local_cluster import Cluster

IGNORING_THE_END: dict[str, object] = {"ignore_eos": True}


def engine(cluster: Cluster) -> types_pb2.Engine:
    """The only engine, as the control plane knows it."""
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        stub = admin_service_pb2_grpc.AdminServiceStub(channel)
        (found,) = stub.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=60).engines
    return found


@contextmanager
def preempting(state_dir: Path, *flags: str) -> Iterator[Cluster]:
    """A cluster under a policy that preempts: a pause interrupts its running calls."""
    made = Cluster(state_dir, *flags)
    try:
        assert "acknowledged by every engine" in made.cli("policy", "set", "atlas")
        yield made
    finally:
        made.close()


def is_there(programs: program_service_pb2_grpc.ProgramServiceStub, program: str) -> bool:
    """The control plane knows the program."""
    try:
        programs.GetProgram(program_service_pb2.GetProgramRequest(program_id=program), timeout=60)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Asks for `tokens` tokens after `prompt`, greedily. The cluster's policy must preempt."""

    cluster: Cluster
    prompt: str
    tokens: int

    def ask(self, program: str, more: dict[str, object] | None = None) -> str:
        """The answer of a program's call; `more` goes into the request's body."""
        headers: dict[str, Any] = {"x-agentserving-program-id": program}
        with openai.OpenAI(
            base_url=self.cluster.addresses["gateway"], api_key="none", default_headers=headers, max_retries=0,
            timeout=240,
        ) as client:  # fmt: skip
            answer = client.completions.create(
                model=self.cluster.addresses["model"], prompt=self.prompt, max_tokens=self.tokens, temperature=0,
                extra_body=IGNORING_THE_END if more is None else more,
            )  # fmt: skip
        return answer.choices[0].text

    def interrupted(self, program: str, more: dict[str, object] | None = None) -> str:
        """The answer of a call that is preempted in the middle: its program is paused while it runs, and resumed."""
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(self.ask(program, more)))
        thread.start()
        cluster = self.cluster
        # By RPC: a command takes a second to start, and a grammar's answer is fast.
        with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
            programs = program_service_pb2_grpc.ProgramServiceStub(channel)
            # The engine's last report may be of the call before.
            cluster.wait(lambda: is_there(programs, program) and engine(cluster).load.running == 1, 120)
            programs.PauseProgram(program_service_pb2.PauseProgramRequest(program_id=program), timeout=60)
        cluster.wait(lambda: (engine(cluster).load.running, engine(cluster).load.waiting) == (0, 1), 120)
        cluster.cli("resume", program)
        thread.join(240)
        assert not thread.is_alive()
        return answers[0]
