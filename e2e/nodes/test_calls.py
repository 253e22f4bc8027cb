"""The steps of a new user: install, apply, wait for Ready, call, and look at the result."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from kube import agents
from kube.client import eventually
from kube.demo import Demo, new_key
from kube.kubectl import conditions, run

pytestmark = pytest.mark.usefixtures("plugin_on_path")

# Of a key that was made or revoked, at all gateways.
REVOKED_S = 5.0
# HOST: the status of a call to an engine without a ticket.
PAST_THE_GATEWAY = """
import json, sys, urllib.error, urllib.request
body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1}).encode()
url, head = f"http://{sys.argv[1]}:8000/v1/completions", {"content-type": "application/json"}
request = urllib.request.Request(url, body, head)
try:
    print(urllib.request.urlopen(request, timeout=20).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def test_every_condition_of_a_ready_cluster_says_so(demo: Demo) -> None:
    found = demo.until_settled()
    expected = dict.fromkeys(conditions(found), "True") | {"Progressing": "False", "Degraded": "False"}
    assert conditions(found) == expected
    assert found["status"]["engines"]["summary"] == "2/2"
    assert found["status"]["url"] == demo.url


def test_the_openai_sdk_is_served_and_its_program_is_seen(demo: Demo) -> None:
    with demo.kubectl.forward("svc/demo-gateway", 80) as gateway:
        http = httpx.Client(trust_env=False)
        sdk = openai.OpenAI(base_url=f"http://{gateway}/v1", api_key=demo.key, http_client=http)
        answer = sdk.chat.completions.create(
            model="tiny",
            max_tokens=10,
            messages=[{"role": "user", "content": "hello"}],
            extra_headers={"x-agentserving-program-id": "by-sdk"},
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 10
        http.close()
    namespace = ("-n", demo.kubectl.namespace)
    assert "by-sdk" in run("kubectl", "agentserving", "ps", *namespace)
    program = json.loads(run("kubectl", "agentserving", "get", "by-sdk", "-o", "json", *namespace))
    assert int(program["attained_service_us"]) > 0


def test_a_key_is_all_that_a_client_needs_and_nothing_else_is_enough(demo: Demo) -> None:
    """As the README says: one command makes a key, and curl is served with it; a revoked one ends within seconds."""
    key = new_key(demo.kubectl, "research", "--for", "ci-bot", "--days", "1")
    body = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
    with demo.kubectl.forward("svc/demo-gateway", 80) as gateway:

        def status(*headers: str) -> str:
            arguments = [word for header in headers for word in ("-H", header)]
            url = f"http://{gateway}/v1/chat/completions"
            return run(
                "curl", "-s", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}", url, *arguments,
                "-H", "content-type: application/json", "-d", json.dumps(body),
            )  # fmt: skip

        eventually("the gateway knows the key", lambda: status(f"Authorization: Bearer {key}") == "200", REVOKED_S)
        assert status(f"x-api-key: {key}") == "200"
        assert [status(), status("Authorization: Bearer none"), status(f"Authorization: Bearer {key}x")] == ["401"] * 3
        run("kubectl", "agentserving", "key", "revoke", key, "-n", demo.kubectl.namespace)
        eventually("the key is refused", lambda: status(f"Authorization: Bearer {key}") == "401", REVOKED_S)
    assert demo.live()["status"]["clientAuth"] == "Keys"


def test_an_engine_refuses_who_comes_past_the_gateway(demo: Demo) -> None:
    answer = agents.python(demo.kubectl, PAST_THE_GATEWAY, f"demo-engine-0.demo-engine.{demo.kubectl.namespace}.svc")
    assert answer.split() == ["403"]


def test_gateways_and_sidecars_keep_framed_streams_to_the_leader(demo: Demo) -> None:
    demo.until_settled()
    for target, port, stream in (("deploy/demo-gateway", 8081, "admissions"), ("pod/demo-engine-0", 7072, "attach")):
        with demo.kubectl.forward(target, port) as address:
            metrics = httpx.get(f"http://{address}/metrics", trust_env=False).text
        assert f'agentserving_leader_stream_framed{{stream="{stream}"}} 1.0' in metrics.splitlines(), target


def test_a_grpc_client_inside_the_cluster_is_served(demo: Demo) -> None:
    assert agents.python(demo.kubectl, agents.CALL, demo.control_plane, "by-grpc").split() == ["200", "12"]
