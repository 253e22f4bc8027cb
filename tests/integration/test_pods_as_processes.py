"""Containers of a generated cluster as processes: exactly the commands, probes and hooks of the manifests.

The environment of a pod is substituted: one loopback address for all pods and Services, directories for volumes.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from agentserving import Client
from agentserving.contract.names import engine_name
from agentserving.transport.connection import Settings, Tls
from agentserving_cli.local.cluster import find_etcd
from agentserving_operator.control_planes import ControlPlanes, Target
from agentserving_operator.manifests import Manifest, desired
from agentserving_operator.manifests.certificate_objects import all_leaves
from agentserving_operator.manifests.common import Port
from agentserving_operator.manifests.ticket_key_secret import files_of
from agentserving_operator.manifests.tls import etcd_client_name, server_name
from support.certificate_files import CertificateFiles
from support.eventually import eventually, eventually_async
from support.operator_objects import make_cluster, pod_spec

# Volumes that several containers mount.
SHARED = ("channel", "ticket-key", "run", "engine-identities")
POD_IP, POD_IP6 = "127.0.77.1", "::1"
HOSTS = re.compile(r"[-a-z0-9.$()_A-Z]+\.ns\.svc|0\.0\.0\.0|\[::\]|\[\$\(POD_IP\)\]|\$\(POD_IP\)|^::$")
SPEC: dict[str, Any] = {"model": {"name": "tiny"}, "engine": {"type": "Simulator", "drainSeconds": 20}}


class Pods:
    """The containers of a cluster that has one pod of each kind."""

    def __init__(self, directory: Path, store: dict[str, Any]) -> None:
        self._directory = directory
        self.cluster = make_cluster(**SPEC, **store)
        self.ip = POD_IP6 if self.cluster.spec.network.pods_are_on_ipv6 else POD_IP
        # As in a URL.
        self.host = f"[{self.ip}]" if ":" in self.ip else self.ip
        hosts = all_leaves(self.cluster)
        # There is no DNS here, so the certificates of etcd name an address.
        hosts["etcd"] = [self.ip, "localhost", etcd_client_name(self.cluster)]
        self.certificates = CertificateFiles(directory, hosts) if self.cluster.spec.tls.on else None
        if self.certificates is not None:
            self._mount_identities(self.certificates)
        self.containers: dict[str, Manifest] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for workload in desired(self.cluster):
            if workload["kind"] in ("Deployment", "StatefulSet"):
                spec = pod_spec(workload)
                for each in [*spec.get("initContainers", []), *spec["containers"]]:
                    self.containers[each["name"]] = {**each, "pod": workload["metadata"]["name"]}

    def _mount_identities(self, files: CertificateFiles) -> None:
        place = self._directory / "engine-identities"
        place.mkdir()
        for name, path in files.paths("engine/demo-engine-0").items():
            to = {"ca": "ca.crt", "cert": "demo-engine-0.crt", "key": "demo-engine-0.key"}[name]
            (place / to).write_bytes(path.read_bytes())

    def start(self, name: str) -> None:
        """Starts a container's command with its arguments."""
        container = self.containers[name]
        words = [*container["command"], *container.get("args", [])]
        # The name in a certificate is not an address to substitute.
        names = {i + 1 for i, word in enumerate(words) if word == "--tls-server-name"}
        argv = [word if i in names else self._resolved(container, word) for i, word in enumerate(words)]
        argv[0] = {"python": sys.executable, "etcd": find_etcd() if name == "etcd" else ""}[argv[0]]
        with (self._directory / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ})

    def _resolved(self, container: Manifest, text: str) -> str:
        places: dict[str, str] = {}
        for mount in container["volumeMounts"]:
            shared = mount["name"] in SHARED or mount["name"].endswith("-tls")
            path = self._directory / (mount["name"] if shared else f"{container['name']}-{mount['name']}")
            path.mkdir(parents=True, exist_ok=True)
            places[mount["mountPath"]] = str(path)
            if mount["name"] == "ticket-key" and not any(path.iterdir()):
                for file, data in files_of(b"k" * 32).items():
                    (path / file).write_bytes(data)
        text = re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], text)
        text = HOSTS.sub(self.ip if text == "::" else self.host, text)
        return text.replace("$(POD_NAME)", f"{container['pod']}-0").replace("127.0.0.1:7072", f"{self.host}:7072")

    def has_identity(self) -> bool:
        """Whether the startup probe of the container `identity` succeeds."""
        return self.probe("identity", "startupProbe") == 200

    def log(self, name: str) -> str:
        """The end of a container's log."""
        return (self._directory / f"{name}.log").read_text()[-2000:]

    def probe(self, name: str, kind: str) -> int:
        """HTTP status of a probe; 0 if the container does not answer. Of a command 200 or 503."""
        probe = self.containers[name][kind]
        if "exec" in probe:
            return 200 if self._command(name, probe) == 0 else 503
        return self.request(probe["httpGet"]["port"], "GET", probe["httpGet"]["path"])[0]

    def _command(self, name: str, probe: Manifest) -> int:
        words = [self._resolved(self.containers[name], each) for each in probe["exec"]["command"]]
        words = [each.replace("127.0.0.1", self.host) for each in words]
        return subprocess.run([sys.executable, *words[1:]], check=False, capture_output=True, timeout=30).returncode

    def hook(self, name: str) -> subprocess.CompletedProcess[bytes]:
        """Runs the preStop command of a container."""
        container = self.containers[name]
        command = [self._resolved(container, each) for each in container["lifecycle"]["preStop"]["exec"]["command"]]
        return subprocess.run([sys.executable, *command[1:]], capture_output=True, timeout=100, check=False)

    def until_ready(self, *names: str) -> None:
        """Waits until the readiness probes of these containers succeed."""
        for name in names:
            eventually(partial(self._ready, name), f"{name} is ready", deadline_s=60)

    def _ready(self, name: str) -> bool:
        assert self.processes[name].poll() is None, (name, self.log(name))
        return self.probe(name, "readinessProbe") == 200

    def request(
        self, port: int, verb: str, path: str, body: Any = None, program: str = "", key: str = ""
    ) -> tuple[int, str]:
        """(status, body) of an HTTP request, with a client's key; status 0 if the connection fails."""
        connection = http.client.HTTPConnection(self.ip, port, timeout=30)
        try:
            text = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json"} | ({"x-agentserving-program-id": program} if program else {})
            if key:
                headers["Authorization"] = f"Bearer {key}"
            connection.request(verb, path, text, headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def close(self) -> None:
        """Kills all containers."""
        for each in self.processes.values():
            each.kill()
            each.wait()


def engine_shows(pods: Pods) -> str:
    """What the engine asks of a client of its port: nothing ("anything" that speaks http), or a certificate."""
    if pods.request(Port.ENGINE, "GET", "/health")[0] == 200:
        return "anything"
    assert pods.certificates is not None
    context = ssl.create_default_context(cafile=str(pods.certificates.paths("client")["ca"]))
    asked = []
    for shown in (False, True):
        if shown:
            files = pods.certificates.paths("client")
            context.load_cert_chain(files["cert"], files["key"])
        try:
            with (
                socket.create_connection((pods.host, Port.ENGINE), 30) as plain,
                context.wrap_socket(plain, server_hostname=engine_name("demo-engine-0")) as connection,
            ):
                connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                asked.append(b" 200 " in connection.recv(100))
        except OSError:
            asked.append(False)
    assert asked == [False, True]
    return "certificate"


def _shows(pods: Pods, port: int, line: str) -> bool:
    """Whether this line is among the metrics at a port."""
    return line in pods.request(port, "GET", "/metrics")[1].splitlines()


def _served(pods: Pods, body: Any, key: str) -> tuple[int, str] | None:
    """None until the gateway knows the key."""
    status, text = pods.request(Port.GATEWAY, "POST", "/v1/chat/completions", body, "asker", key)
    return None if status == 401 else (status, text)


async def _batch_completes(pods: Pods, body: Any, key: str) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    async with openai.AsyncOpenAI(base_url=f"http://{pods.host}:{Port.GATEWAY}/v1", api_key=key) as client:
        file = await client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )

        async def has_output() -> str | None:
            return (await client.batches.retrieve(batch.id)).output_file_id

        output = await eventually_async(has_output, "the batch has an output", deadline_s=60)
        assert json.loads((await client.files.content(output or "")).text)["response"]["status_code"] == 200


@pytest.fixture(
    params=[
        {"store": {"type": "Memory"}, "tls": {"issuer": "None"}},
        {"tls": {"issuer": "None"}},
        {"store": {"type": "Etcd"}, "batches": {"enabled": True}, "gateway": {"port": Port.GATEWAY}},
        {"store": {"type": "Memory"}, "tls": {"issuer": "Operator", "engines": True}},
        {"store": {"type": "Etcd"}, "network": {"ipFamilies": ["IPv6"]}},
    ],
    ids=["Memory", "Etcd", "TLS", "TLS to engines", "IPv6"],
)
def pods(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pods]:
    made = Pods(tmp_path, request.param)
    try:
        yield made
    finally:
        made.close()


async def test_the_generated_containers_serve_calls_drain_and_exit(pods: Pods) -> None:
    for name in pods.containers:
        pods.start(name)
        if name == "identity":
            # kubelet starts the next container when this one has started.
            eventually(pods.has_identity, "the engine has its certificate", deadline_s=60)
    # The development environment has etcd 3.5, whose probe paths differ from those of the manifests.
    pods.until_ready(*(name for name in pods.containers if name not in ("etcd", "identity")))
    for name in ("engine", "sidecar", "control-plane", "gateway", "picker"):
        assert pods.probe(name, "livenessProbe") == 200, name
    assert engine_shows(pods) == ("certificate" if pods.cluster.spec.tls.engines else "anything")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    address = f"{pods.host}:{Port.CONTROL_PLANE}"
    tls, key = None, ""
    if pods.certificates is not None:
        # New clusters with certificates ask clients for keys.
        assert pods.request(Port.GATEWAY, "POST", "/v1/chat/completions", body, "asker")[0] == 401
        files = pods.certificates.paths("operator")
        tls = Tls(**files, server_name=server_name(pods.cluster)).read()
        with Client(address, settings=Settings(tls=tls)) as client:
            key = client.create_key("default", name="asker").text
    for port, stream in ((Port.GATEWAY_HTTP, "admissions"), (Port.SIDECAR_HTTP, "attach")):
        line = f'agentserving_leader_stream_framed{{stream="{stream}"}} 1.0'
        eventually(partial(_shows, pods, port, line), f"the stream {stream} is framed")
    # With a program id: a program without one ends with its call.
    status, text = eventually(lambda: _served(pods, body, key), "a call is served")
    assert status == 200, text
    if "batches" in pods.containers:
        await _batch_completes(pods, body, key)
    target = Target(address=address, scheduling=pods.cluster.spec.scheduling, generation=1, tls=tls)
    seen = await ControlPlanes().apply_policy(target)
    assert seen is not None
    # The program of a batch has ended with its last line.
    assert (seen.programs, seen.policy_name, seen.store_healthy) == (1, "auto", True)
    assert pods.probe("sidecar", "readinessProbe") == 200
    done = pods.hook("engine")
    assert done.returncode == 0, done.stderr
    assert pods.probe("sidecar", "readinessProbe") == 503
    status, text = pods.request(Port.GATEWAY, "POST", "/v1/chat/completions", body, key=key)
    assert status == 503, text
    identity = [name for name in pods.containers if name == "identity"]
    batches = [name for name in pods.containers if name == "batches"]
    for name in (*batches, "engine", "sidecar", *identity, "picker", "gateway", "control-plane"):
        pods.processes[name].terminate()
        assert pods.processes[name].wait(30) == 0, (name, pods.log(name))
