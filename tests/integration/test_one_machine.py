"""One cluster of simulated engines: failures and who detects them, and what is never written anywhere."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import openai
import psutil
import pytest
from agentserving.v1 import call_service_pb2 as pb
from agentserving.v1 import call_service_pb2_grpc as rpc
from agentserving.v1 import program_service_pb2, program_service_pb2_grpc
from integration.local_cluster import Cluster
from prometheus_client.parser import text_string_to_metric_families
from support.front import Front
from support.processes import running

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(120)]

SECRET, PROGRAM = "zebra-umbrella-47", "marked-program-93"
# Answers end after some hundred tokens by themselves.
ENDLESS = {"ignore_eos": True}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("one") / "state", "--engine", "simulator", "--engines", "2")
    try:
        yield made
    finally:
        made.close()


def client(cluster: Cluster, program: str, base_url: str = "") -> openai.OpenAI:
    headers = {"x-agentserving-program-id": program}
    url = base_url or cluster.addresses["gateway"]
    return openai.OpenAI(base_url=url, api_key="none", default_headers=headers, max_retries=0, timeout=30)


def overview(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.cli("top", "-o", "json"))
    return found


def in_engines(cluster: Cluster, field: str) -> int:
    return sum(int(engine["load"][field]) for engine in overview(cluster)["engines"])


def settled(cluster: Cluster) -> None:
    cluster.wait(lambda: in_engines(cluster, "running") + in_engines(cluster, "waiting") == 0)


def process(cluster: Cluster, marker: str) -> psutil.Process:
    (found,) = running(cluster.process.pid, marker)
    return found


def metrics(cluster: Cluster) -> dict[str, str]:
    pages = {}
    for name, url in cluster.addresses["metrics"].items():
        with urllib.request.urlopen(url, timeout=10) as answer:
            pages[name] = answer.read().decode()
    return pages


# -- logs, metrics and files -----------------------------------------------------------------------------------------


def test_prompts_are_written_nowhere_and_programs_are_no_labels(cluster: Cluster) -> None:
    with client(cluster, PROGRAM) as agent:
        agent.completions.create(model="tiny", prompt=f"{SECRET} and more", max_tokens=3)
        list(
            agent.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": SECRET}], max_tokens=3, stream=True
            )
        )
        bad: tuple[dict[str, object], ...] = ({"max_tokens": -1}, {"model": "none"}, {"prompt": {SECRET: 1}})
        for fields in bad:
            body = {"prompt": SECRET, **fields}
            with pytest.raises(openai.APIStatusError):
                agent.post("/completions", cast_to=object, body=body)
        with pytest.raises(openai.APIStatusError):
            agent.post("/completions", cast_to=object, body={"session_id": SECRET})
    cluster.wait(lambda: cluster.program(PROGRAM)["calls_completed"] == "2")
    pages = metrics(cluster)
    assert set(pages) == {"control-plane", "gateway", "batches", "engine-0-sidecar", "engine-1-sidecar"}
    for name, page in pages.items():
        assert SECRET not in page, name
        assert PROGRAM not in page, name
    files = [path for path in cluster.directory.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    assert any("etcd" in str(path) for path in files)
    admission = [path for path in files if SECRET.encode() in path.read_bytes()]
    assert not admission, "etcd, journals and logs hold no prompt"
    assert any(PROGRAM.encode() in path.read_bytes() for path in files), "the search would have found it"


UNIT = re.compile(
    r"_(seconds|seconds_per_token|bytes|tokens|blocks|calls|programs|batches|files|classes|keys|engines|writes|reports|version|epoch|revision|ratio|rows)$"
)
STATES = re.compile(
    r"_(healthy|ready|attached|connected|framed|stuck|running|completed|unmanaged|in_flight|waiting|held|needed|live"
    r"|leader|state|health|went_back|obstacle)$"
)


def test_metrics_have_our_prefix_and_a_unit(cluster: Cluster) -> None:
    for page in metrics(cluster).values():
        families = list(text_string_to_metric_families(page))
        assert len(families) > 5
        for family in families:
            if family.name.startswith(("process_", "python_")):
                continue  # the standard ones of the Prometheus client
            assert family.name.startswith("agentserving_")
            if family.type == "gauge":
                assert UNIT.search(family.name) or STATES.search(family.name), family.name
            assert not re.search(r"_(us|ms|ns)(_|$)", family.name), "base units"


# -- fail open, and several gateways ---------------------------------------------------------------------------------


@contextmanager
def gateway(cluster: Cluster, directory: Path, run_dir: Path) -> Iterator[tuple[str, str]]:
    """Another gateway of the same cluster: its base URL and its metrics page."""
    key = cluster.directory / "gateway.key"
    front = Front(directory, run_dir, control_plane=cluster.addresses["control_plane"], ticket_key_file=key).start()
    try:
        front.picker.wait_ready(path="/healthz")
        Cluster.wait(lambda: _answers(f"http://127.0.0.1:{front.port}/health"), 30)
        yield front.url, f"http://127.0.0.1:{front.picker.http_port}"
    finally:
        front.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def without_control_plane(cluster: Cluster) -> Iterator[None]:
    """Kills it, and lets it be restarted after the block."""
    victim = process(cluster, "agentserving_controlplane")
    cluster.process.send_signal(signal.SIGSTOP)
    try:
        victim.kill()
        cluster.wait(lambda: victim.status() == psutil.STATUS_ZOMBIE)
        yield
    finally:
        cluster.process.send_signal(signal.SIGCONT)
    cluster.wait(lambda: _can_list(cluster))
    cluster.wait(lambda: all(engine["state"] == "ENGINE_STATE_READY" for engine in overview(cluster)["engines"]))


def _can_list(cluster: Cluster) -> bool:
    try:
        return len(overview(cluster)["engines"]) == 2
    except AssertionError:
        return False


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A short path."""
    with tempfile.TemporaryDirectory(prefix="as-") as directory:
        yield Path(directory)


def _refusal(agent: openai.OpenAI) -> str:
    with pytest.raises(openai.InternalServerError) as refused:
        agent.completions.create(model="tiny", prompt="x", max_tokens=2)
    assert refused.value.response.headers["retry-after"] == "1"
    return str(refused.value)


def test_two_gateways_share_programs(cluster: Cluster, tmp_path: Path, run_dir: Path) -> None:
    with gateway(cluster, tmp_path, run_dir) as (second, page):
        cluster.wait(lambda: _answers(f"{page}/readyz"))
        for url in (cluster.addresses["gateway"], second):
            with client(cluster, "shared", url) as agent:
                agent.completions.create(model="tiny", prompt="x", max_tokens=2)
        cluster.wait(lambda: cluster.program("shared")["calls_completed"] == "2")


def test_calls_are_served_and_counted_while_the_control_plane_is_away(
    cluster: Cluster, tmp_path: Path, run_dir: Path
) -> None:
    with gateway(cluster, tmp_path, run_dir) as (_, page):
        cluster.wait(lambda: _answers(f"{page}/readyz"))
    with without_control_plane(cluster):
        with client(cluster, "orphan") as agent:
            served = agent.completions.with_raw_response.create(model="tiny", prompt="x", max_tokens=2)
        assert served.headers["x-agentserving-engine"].startswith("engine-")
        assert "x-agentserving-call-id" not in served.headers
        with urllib.request.urlopen(cluster.addresses["metrics"]["gateway"], timeout=10) as answer:
            counted = re.search(r"^agentserving_gateway_unmanaged_calls_total (\S+)$", answer.read().decode(), re.M)
        assert counted is not None
        assert float(counted[1]) >= 1
        with gateway(cluster, tmp_path, run_dir) as (again, page), client(cluster, "orphan", again) as agent:
            # It knows the engines of its last run.
            cluster.wait(lambda: _answers(f"{page}/readyz"))
            agent.completions.create(model="tiny", prompt="x", max_tokens=2)
        with gateway(cluster, tmp_path, run_dir / "new") as (fresh, page), client(cluster, "orphan", fresh) as agent:
            assert not _answers(f"{page}/readyz")
            # Envoy answers by itself until its picker has started.
            cluster.wait(lambda: "the control plane has not been reached yet" in _refusal(agent))
    with client(cluster, "adopted") as agent:
        cluster.wait(
            lambda: "x-agentserving-call-id"
            in agent.completions.with_raw_response.create(model="tiny", prompt="x", max_tokens=2).headers
        )


# -- engines that hang -----------------------------------------------------------------------------------------------


def state_of(cluster: Cluster, engine_id: str) -> str:
    (found,) = [engine["state"] for engine in overview(cluster)["engines"] if engine["engine_id"] == engine_id]
    return str(found)


def test_a_stopped_engine_is_detected_and_gets_no_calls_until_it_continues(cluster: Cluster) -> None:
    settled(cluster)
    victim = process(cluster, "--engine-id engine-0 --channel-dir")
    victim.send_signal(signal.SIGSTOP)
    try:
        cluster.wait(lambda: state_of(cluster, "engine-0") in ("ENGINE_STATE_STUCK", "ENGINE_STATE_DOWN"), 30)
        with client(cluster, "careful") as agent:
            for _ in range(4):
                answer = agent.completions.with_raw_response.create(model="tiny", prompt="x", max_tokens=2)
                assert answer.headers["x-agentserving-engine"] == "engine-1"
    finally:
        victim.send_signal(signal.SIGCONT)
    cluster.wait(lambda: state_of(cluster, "engine-0") == "ENGINE_STATE_READY", 12)


# -- clients that leave ----------------------------------------------------------------------------------------------


def left_within(cluster: Cluster, program: str, bound_s: float) -> None:
    """An engine reports the end of a call immediately, so the table shows when it has released it."""
    began = time.monotonic()
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        stub = program_service_pb2_grpc.ProgramServiceStub(channel)
        request = program_service_pb2.GetProgramRequest(program_id=program)
        while stub.GetProgram(request, timeout=10).program.calls:
            assert time.monotonic() - began < bound_s
            time.sleep(0.02)


def test_calls_of_a_client_that_leaves_are_aborted_while_running_and_queued(cluster: Cluster) -> None:
    settled(cluster)
    with client(cluster, "leaver") as agent:
        streams = [
            agent.completions.create(model="tiny", prompt=f"{n}", max_tokens=6000, stream=True, extra_body=ENDLESS)
            for n in range(16)
        ]
        for stream in streams:
            next(iter(stream))
        cluster.wait(lambda: in_engines(cluster, "running") == 16)
        sock = _raw_call(cluster, "queued")
        cluster.wait(lambda: in_engines(cluster, "waiting") == 1)
        sock.close()
        left_within(cluster, "queued", 10.0)
        for stream in streams:
            stream.close()
    left_within(cluster, "leaver", 10.0)


def _raw_call(cluster: Cluster, program: str) -> socket.socket:
    host, _, port = cluster.addresses["gateway"].removeprefix("http://").removesuffix("/v1").partition(":")
    sock = socket.create_connection((host, int(port)))
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 6000, **ENDLESS}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-agentserving-program-id: {program}\r\n"
    sock.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return sock


# -- Generate --------------------------------------------------------------------------------------------------------


def admitted(cluster: Cluster, channel: grpc.Channel, program: str) -> pb.AdmitCallResponse:
    request = pb.AdmitCallRequest(program_id=program, implicit=True, prompt_tokens=1)
    admission: pb.AdmitCallResponse = rpc.CallServiceStub(channel).AdmitCall(request, timeout=10)
    return admission


def generate(admission: pb.AdmitCallResponse, **body: object) -> pb.GenerateRequest:
    document = {"model": "tiny", "prompt": "x", "stream": True, **body}
    return pb.GenerateRequest(
        ticket=admission.ticket, call_id=admission.call_id, path="/v1/completions", body=json.dumps(document).encode()
    )


def test_generate_streams_in_pieces_and_reaches_the_account(cluster: Cluster) -> None:
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        admission = admitted(cluster, channel, "native")
    with grpc.insecure_channel(admission.sidecar_address) as channel:
        answers = list(rpc.CallServiceStub(channel).Generate(generate(admission, max_tokens=100), timeout=30))
    assert answers[0].http_status == 200
    assert answers[0].content_type == "text/event-stream"
    events = b"".join(answer.chunk for answer in answers).split(b"\n\n")
    assert events[-2] == b"data: [DONE]"
    assert len(events) == 103
    assert len(answers) < 100, "several tokens a message"
    cluster.wait(lambda: cluster.program("native")["output_tokens"] == "100")


def test_a_cancelled_generate_frees_the_engine(cluster: Cluster) -> None:
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        admission = admitted(cluster, channel, "quitter")
    with grpc.insecure_channel(admission.sidecar_address) as channel:
        stream = rpc.CallServiceStub(channel).Generate(generate(admission, max_tokens=6000, **ENDLESS), timeout=30)
        next(stream)
        stream.cancel()
        left_within(cluster, "quitter", 10.0)
    assert cluster.program("quitter")["calls_completed"] == "1"


def test_a_bad_generate_is_refused_by_field_or_by_the_engine(cluster: Cluster) -> None:
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        admission = admitted(cluster, channel, "wrong")
    options = [("grpc.max_send_message_length", 32 << 20)]
    with grpc.insecure_channel(admission.sidecar_address, options=options) as channel:
        stub = rpc.CallServiceStub(channel)
        for request, message in (
            (pb.GenerateRequest(path="/metrics", body=b"{}"), "path: '/metrics' is none of"),
            (pb.GenerateRequest(path="/v1/../health", body=b"{}"), "path:"),
            (pb.GenerateRequest(path="/v1/completions", body=b"x" * (11 << 20)), "body: at most 10485760 bytes"),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                list(stub.Generate(request, timeout=10))
            assert isinstance(refused.value, grpc.Call)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert message in (refused.value.details() or "")
        head, *rest = stub.Generate(pb.GenerateRequest(path="/v1/responses", body=b"{}"), timeout=10)
        assert head.http_status == 400
        assert json.loads(b"".join(answer.chunk for answer in rest))["error"]["message"]
        head, *_ = stub.Generate(generate(admission, max_tokens=-1), timeout=10)
        assert head.http_status == 400


# -- drain, last: it takes an engine out -----------------------------------------------------------------------------


def test_a_drained_engine_gets_no_new_programs_until_it_is_undrained(cluster: Cluster) -> None:
    settled(cluster)
    assert "engine-0 is draining" in cluster.cli("drain", "engine-0")
    try:
        cluster.wait(lambda: state_of(cluster, "engine-0") == "ENGINE_STATE_DRAINING")
        assert "Draining" in cluster.cli("top", "--once")
        for number in range(4):
            with client(cluster, f"new-{number}") as agent:
                answer = agent.completions.with_raw_response.create(model="tiny", prompt="x", max_tokens=2)
                assert answer.headers["x-agentserving-engine"] == "engine-1"
    finally:
        cluster.cli("undrain", "engine-0")
    cluster.wait(lambda: state_of(cluster, "engine-0") == "ENGINE_STATE_READY")


def test_a_stopping_sidecar_lets_the_calls_of_its_engine_finish(cluster: Cluster) -> None:
    settled(cluster)
    with client(cluster, "patient") as agent:
        raw = agent.completions.with_raw_response.create(model="tiny", prompt="x", max_tokens=150, stream=True)
        engine = raw.headers["x-agentserving-engine"]
        stream = iter(raw.parse())
        next(stream)
        process(cluster, f"--engine-id {engine} --engine-address").send_signal(signal.SIGTERM)
        assert len(list(stream)) >= 149
    cluster.wait(lambda: cluster.program("patient")["output_tokens"] == "150")
    cluster.wait(lambda: f"{engine}-sidecar is up again" in cluster.log.read_text())


def test_clients_read_columns_that_fit_their_screen(cluster: Cluster) -> None:
    for width in ("80", "200"):
        argv = [sys.executable, "-m", "agentserving_cli.main", "top", "--once", "--state-dir", str(cluster.directory)]
        printed = subprocess.check_output(argv, text=True, timeout=60, env={**os.environ, "COLUMNS": width})
        assert all(len(line) <= int(width) for line in printed.splitlines())
        assert "engine-0" in printed
