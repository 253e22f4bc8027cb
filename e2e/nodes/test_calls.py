"""The steps of a new user: install, apply, wait for Ready, call, and look at the result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import openai
from kube import agents
from kube.demo import Demo
from kube.kubectl import conditions


def command(*argv: str, control_plane: str) -> str:
    """The `agentserving` command of this checkout."""
    program = Path(sys.executable).with_name("agentserving")
    env = {**os.environ, "AGENTSERVING_CONTROL_PLANE": control_plane}
    done = subprocess.run([program, *argv], capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_condition_of_a_ready_cluster_says_so(demo: Demo) -> None:
    found = demo.until_settled()
    expected = dict.fromkeys(conditions(found), "True") | {"Progressing": "False", "Degraded": "False"}
    assert conditions(found) == expected
    assert found["status"]["engines"]["summary"] == "2/2"
    assert found["status"]["url"] == demo.url


def test_the_openai_sdk_is_served_and_its_program_is_seen(demo: Demo) -> None:
    with demo.kubectl.forward("svc/demo-gateway", 80) as gateway:
        http = httpx.Client(trust_env=False)
        sdk = openai.OpenAI(base_url=f"http://{gateway}/v1", api_key="none", http_client=http)
        answer = sdk.chat.completions.create(
            model="tiny",
            max_tokens=10,
            messages=[{"role": "user", "content": "hello"}],
            extra_headers={"x-agentserving-program-id": "by-sdk"},
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 10
        http.close()
    with demo.kubectl.forward("svc/demo-control-plane", 7070) as control_plane:
        assert "by-sdk" in command("ps", control_plane=control_plane)
        program = json.loads(command("get", "by-sdk", "-o", "json", control_plane=control_plane))
        assert int(program["attained_service_us"]) > 0


def test_a_grpc_client_inside_the_cluster_is_served(demo: Demo) -> None:
    assert agents.python(demo.kubectl, agents.CALL, demo.control_plane, "by-grpc").split() == ["200", "12"]
