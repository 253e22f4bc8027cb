"""`agentserving up` with keys, as its user has it: who gets in, whose programs they are, what a lost part does."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import agentserving
import grpc
import psutil
import pytest
from agentserving.transport.connection import Settings
from agentserving.transport.errors import PermissionDeniedError
from agentserving.v1 import call_service_pb2 as cpb
from agentserving.v1 import call_service_pb2_grpc as crpc
from agentserving.v1 import engine_service_pb2 as epb
from agentserving.v1 import engine_service_pb2_grpc as erpc
from agentserving_cli.load import run_mixed_load
from agentserving_cli.local.etcd_certificates import EtcdCertificates
from integration.local_cluster import Cluster
from support.processes import command_lines

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(240)]

# Issue 15: a revocation is in force everywhere within this time.
REVOKED_S = 5.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("keys") / "state"
    made = Cluster(directory, "--engine", "simulator", "--engines", "2", auth=True)
    try:
        yield made
    finally:
        made.close()


def call(
    cluster: Cluster, key: str | None, program: str = "p", path: str = "/completions", **sent: str
) -> tuple[int, Any]:
    """(status, body) of one call with a key; the status is 0 when there is no gateway."""
    headers = {"content-type": "application/json", "x-agentserving-program-id": program, **sent}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    body = {"model": "tiny", "prompt": "x", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
    request = urllib.request.Request(cluster.addresses["gateway"] + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except OSError:
        return 0, None


def make(cluster: Cluster, *arguments: str) -> str:
    """The text of a new key; `cli` gives standard output, on which nothing else is."""
    return cluster.cli("key", "create", *arguments).strip()


def client(cluster: Cluster, key: str) -> agentserving.Client:
    return agentserving.Client(cluster.addresses["control_plane"], api_key=key, settings=Settings(tls=None, attempts=1))


def test_only_a_valid_key_of_this_cluster_gets_in(cluster: Cluster) -> None:
    assert call(cluster, cluster.key)[0] == 200
    admin = (cluster.directory / "keys" / "admin.key").read_text().strip()
    gateway = (cluster.directory / "keys" / "gateway.key").read_text().strip()
    for wrong in (None, "none", "as_00000000_" + "A" * 43, cluster.key[:-3] + "AAA", admin, gateway):
        status, body = call(cluster, wrong)
        assert status == 401, wrong
        assert body["error"]["code"] in ("missing_api_key", "invalid_api_key")
    status, body = call(cluster, None, path="/messages")
    assert (status, body["error"]["type"]) == (401, "authentication_error")


def test_keys_and_tokens_are_only_the_users(cluster: Cluster) -> None:
    home = cluster.directory / "keys"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    texts = [file.read_text().strip() for file in home.iterdir() if file.suffix == ".key"]
    assert len(texts) == 4
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in home.rglob("*") if file.is_file())
    secrets = [text[12:] for text in texts]
    assert cluster.key[12:] in secrets
    seen = [file for file in cluster.directory.rglob("*") if file.is_file() and home not in file.parents]
    for file in (file for file in seen if not file.is_symlink()):
        content = file.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], file
    lines = [" ".join(process.cmdline()) for process in cluster.tree if process.is_running()]
    assert not [secret for secret in secrets for line in lines if secret in line]


def test_a_program_belongs_to_its_keys_tenant(cluster: Cluster) -> None:
    keys = {tenant: make(cluster, tenant, "--for", "test", "--days", "1") for tenant in ("red", "blue")}
    for key in keys.values():
        claims = {"x-agentserving-tenant": "default"}
        assert call(cluster, key, "same-id", **claims)[0] == 200
    for tenant, key in keys.items():
        with client(cluster, key) as own:
            cluster.wait(lambda own=own: own.get_program("same-id").calls_completed == 1)  # type: ignore[misc]
            assert {program.program_id for program in own.list_programs()} == {"same-id"}, tenant
            with pytest.raises(PermissionDeniedError):
                own.set_policy("fcfs")
            with pytest.raises(PermissionDeniedError):
                own.create_key(tenant)


def test_a_revoked_key_opens_nothing_within_five_seconds(cluster: Cluster) -> None:
    key = make(cluster, "red")
    cluster.wait(lambda: call(cluster, key)[0] == 200)
    assert "is revoked" in cluster.cli("key", "revoke", key)
    began = time.monotonic()
    while call(cluster, key)[0] != 401:
        assert time.monotonic() - began < REVOKED_S
    assert "has been revoked" in call(cluster, key)[1]["error"]["message"]
    assert f"{key[3:11]}" in cluster.cli("key", "list", "--tenant", "red")
    assert key[12:] not in cluster.cli("key", "list", "-o", "json")


def test_a_key_may_be_made_for_a_few_calls_a_minute(cluster: Cluster) -> None:
    key = make(cluster, "green", "--calls-per-minute", "2")
    cluster.wait(lambda: call(cluster, key, path="/models")[0] != 401)
    statuses = [call(cluster, key)[0] for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert "2 requests a minute" in call(cluster, key)[1]["error"]["message"]


def test_nobody_attaches_as_an_engine_without_a_sidecars_token(cluster: Cluster) -> None:
    for metadata in ((), (("authorization", f"Bearer {cluster.key}"),)):
        with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
            hello = epb.EngineHello(engine_id="engine-0", boot_id="b", address="127.0.0.1:1")
            stream = erpc.EngineServiceStub(channel).Attach(iter([epb.AttachRequest(hello=hello)]), metadata=metadata)
            with pytest.raises(grpc.RpcError) as refused:
                next(stream)
        assert refused.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    assert call(cluster, cluster.key)[0] == 200


def test_etcd_answers_the_cluster_alone(cluster: Cluster) -> None:
    """Otherwise another user of the machine could write an administrator's key into it."""
    (etcd,) = [each for each in cluster.tree if "etcd" in each.name()]
    argv = etcd.cmdline()
    stranger = ssl.create_default_context(cafile=cluster.directory / "keys" / "etcd" / "ca.crt")
    for flag in ("--listen-client-urls", "--listen-peer-urls"):
        url = argv[argv.index(flag) + 1]
        assert re.search(r"certificate required|bad certificate|reset|EOF", refusal(f"{url}/version", stranger))
        assert re.search(r"400|closed|reset", refusal(f"{url.replace('https', 'http')}/version"))
    known = EtcdCertificates(cluster.directory / "keys" / "etcd").context()
    url = argv[argv.index("--listen-client-urls") + 1]
    with urllib.request.urlopen(f"{url}/version", timeout=10, context=known) as answer:
        assert answer.status == 200


def refusal(url: str, context: ssl.SSLContext | None = None) -> str:
    """How a GET is refused; empty when it is answered."""
    try:
        with urllib.request.urlopen(url, timeout=10, context=context):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            return str(error)
    except OSError as error:
        return str(error)


def page(url: str, authorization: str = "") -> int:
    """The status of a GET."""
    request = urllib.request.Request(url, headers={"authorization": authorization} if authorization else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_metrics_of_every_process_need_the_token_that_only_the_user_has(cluster: Cluster) -> None:
    file = cluster.directory / "keys" / "metrics.token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    urls = list(cluster.addresses["metrics"].values())
    assert len(urls) == 5, "control plane, gateway, batch service, two sidecars"
    more = [url.replace("/metrics", path) for url in urls for path in ("/engine/metrics", "/envoy/metrics", "/drain")]
    for url in (*urls, *more):
        for wrong in ("", f"Bearer {cluster.key}"):
            assert page(url, wrong) == 401, url
    for url in urls:
        assert page(url, f"Bearer {file.read_text().strip()}") == 200
        assert page(url.replace("/metrics", "/healthz")) == 200


def test_a_sidecar_passes_on_only_what_the_control_plane_has_admitted_to_its_engine(cluster: Cluster) -> None:
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1}).encode()
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        metadata = [("authorization", f"Bearer {cluster.key}")]
        stub = crpc.CallServiceStub(channel)
        ask = cpb.AdmitCallRequest(program_id="generates", implicit=True)
        here = stub.AdmitCall(ask, metadata=metadata, timeout=10)
        others = [stub.AdmitCall(cpb.AdmitCallRequest(implicit=True, exclude_engine_ids=[here.engine_id]),
                                 metadata=metadata, timeout=10)]  # fmt: skip
    with grpc.insecure_channel(here.sidecar_address) as channel:
        sidecar = crpc.CallServiceStub(channel)
        for wrong in ("", "x", here.ticket[:-4] + "AAAA", others[0].ticket):
            with pytest.raises(grpc.RpcError) as refused:
                list(sidecar.Generate(cpb.GenerateRequest(path="/v1/completions", body=body, ticket=wrong), timeout=10))
            assert isinstance(refused.value, grpc.Call)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED, wrong
        request = cpb.GenerateRequest(path="/v1/completions", body=body, ticket=here.ticket, call_id=here.call_id)
        assert next(iter(sidecar.Generate(request, timeout=10))).http_status == 200


def test_agents_with_the_printed_lines_and_the_client_library_work(cluster: Cluster) -> None:
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": cluster.addresses["gateway"],
        "OPENAI_API_KEY": cluster.key,
        "AGENTSERVING_CONTROL_PLANE": cluster.addresses["control_plane"],
    }
    log = cluster.log.read_text()
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "AGENTSERVING_CONTROL_PLANE"):
        assert f"export {name}={environment[name]}" in log
    argv = [sys.executable, "-m", "examples.with_client"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    program = done.stdout.split()[1].rstrip(":")
    # Its end, with the outcome, came by gRPC with the same key.
    cluster.wait(lambda: cluster.program(program)["outcome"] == "OUTCOME_COMPLETED")


async def test_the_load_generator_sends_the_key(cluster: Cluster) -> None:
    url = cluster.addresses["gateway"]
    results = await run_mixed_load(url, "tiny", programs=4, rate_per_s=50, seed=1, scale=0.02, api_key=cluster.key)
    assert [result.error for result in results if result.failed] == []


def picker_of(cluster: Cluster) -> psutil.Process:
    children = command_lines(cluster.process.pid)
    (found,) = [each for each, argv in children.items() if argv[2:3] == ["agentserving_gateway"]]
    return found


def test_nobody_gets_in_while_the_picker_is_gone_and_keys_are_known_when_it_is_back(cluster: Cluster) -> None:
    before = picker_of(cluster)
    cluster.process.send_signal(signal.SIGSTOP)
    before.kill()
    try:
        # Each waits for the picker before it is refused.
        asked = list(product((cluster.key, None, "none"), ("/completions", "/messages")))
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = list(pool.map(lambda each: call(cluster, each[0], path=each[1]), asked))
        assert [status for status, _ in answers] == [503] * len(asked)
        assert "cannot verify API keys" in answers[0][1]["error"]["message"]
    finally:
        cluster.process.send_signal(signal.SIGCONT)
    cluster.wait(lambda: call(cluster, cluster.key)[0] == 200)
    assert call(cluster, None)[0] == 401


def test_commands_without_the_administrators_key_say_what_to_do(cluster: Cluster) -> None:
    argv = [sys.executable, "-m", "agentserving_cli.main", "policy", "get"]
    where = [
        "--control-plane",
        cluster.addresses["control_plane"],
        "--state-dir",
        str(cluster.directory.parent / "none"),
    ]
    bare = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    for key, words in ((None, "Set AGENTSERVING_API_KEY to a key"), (cluster.key, "to the key of an administrator")):
        environment = bare if key is None else {**bare, "AGENTSERVING_API_KEY": key}
        done = subprocess.run([*argv, *where], capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode == 1
        assert words in done.stderr.replace("\n", " "), done.stderr
        assert "Traceback" not in done.stderr


def test_an_engines_port_serves_strangers_nothing_but_its_health(cluster: Cluster) -> None:
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        ask = cpb.AdmitCallRequest(program_id="direct", implicit=True)
        call = crpc.CallServiceStub(channel).AdmitCall(
            ask, metadata=[("authorization", f"Bearer {cluster.key}")], timeout=10
        )
    for path in ("/v1/models", "/metrics", "/v1/responses/resp_1"):
        for headers in ({}, {"authorization": f"Bearer {cluster.key}"}, {"x-session-id": call.ticket}):
            request = urllib.request.Request(f"http://{call.engine_address}{path}", headers=headers)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)
            refused.value.close()
            assert refused.value.code == 403, path
    assert page(f"http://{call.engine_address}/health") == 200
    # What the same requests are when a gateway sends them.
    request = urllib.request.Request(
        cluster.addresses["gateway"] + "/models", headers={"authorization": f"Bearer {cluster.key}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert [each["id"] for each in json.load(answer)["data"]] == ["tiny"]
    body = {"model": "tiny", "messages": [{"role": "user", "content": "how long is this?"}], "max_tokens": 1}
    request = urllib.request.Request(
        cluster.addresses["gateway"] + "/messages/count_tokens", json.dumps(body).encode(),
        {"content-type": "application/json", "x-api-key": cluster.key},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["input_tokens"] > 0
