"""A real vLLM with the flags of an AgentServingCluster whose calls are encrypted, and files as the pod writes them."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from agentserving.contract.names import SIDECAR_NAME, engine_name
from agentserving.contract.signatures import public_bytes
from agentserving_cli.local import vllm_env
from agentserving_cli.local.layout import ClusterSpec, engine_env, vllm_argv
from agentserving_cli.local.ports import free_ports
from agentserving_operator.engine_identity import SERVED, copy
from agentserving_operator.manifests.common import Port
from agentserving_operator.manifests.engine_pod import engine_container
from agentserving_operator.manifests.tls import ENGINE_SERVED_DIR
from support.certificate_files import CertificateFiles
from support.eventually import eventually
from support.operator_objects import make_cluster

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

START_BOUND_S = 600
ME = "demo-engine-0"


class Engine:
    """vLLM, and the volumes of its pod: `all`, the Secret of all engines, and `own`, what the engine reads."""

    def __init__(self, home: Path) -> None:
        self.files = CertificateFiles(home, {ME: [SIDECAR_NAME, engine_name(ME)], "client": []})
        self._all, self._own = home / "all", home / "own"
        for each in (self._all, self._own):
            each.mkdir()
        self.renew()
        for signer in ("ticket", "gateway"):
            (home / f"{signer}.pub").write_bytes(public_bytes(os.urandom(32)))
        python = vllm_env.ensure_vllm()
        (self.port,), self.log = free_ports(1), home / "log"
        self.container = engine_container(make_cluster(tls={"engines": True}))
        argv = vllm_argv(python, vllm_env.ensure_model(python), self.port, ClusterSpec(home), *self.flags())
        env = engine_env(ME, home, home, 0, unticketed="last")
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(argv, env={**os.environ, **env}, stdout=out, stderr=out)

    def flags(self) -> list[str]:
        """Those of the manifest about TLS."""
        words = self.container["args"]
        begins = [i for i, word in enumerate(words) if "-ssl-" in word]
        found = [word for i in begins for word in words[i : i + 2] if "ssl" in word or not word.startswith("-")]
        return [self._here(word) for word in found]

    def _here(self, text: str) -> str:
        return text.replace(ENGINE_SERVED_DIR, str(self._own / SERVED))

    def renew(self) -> None:
        """Brings the present certificates into the pod, as kubelet and the container `identity` do."""
        paths = self.files.paths(ME)
        for name, to in (("ca", "ca.crt"), ("cert", f"{ME}.crt"), ("key", f"{ME}.key")):
            scratch = self._all / "scratch"
            scratch.write_bytes(paths[name].read_bytes())
            scratch.replace(self._all / to)
        assert copy(self._all, self._own, ME)

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        return "Application startup complete" in self.log.read_text()

    def is_alive(self) -> bool:
        """Its liveness probe."""
        words = [self._here(each) for each in self.container["livenessProbe"]["exec"]["command"]]
        words = [each.replace(f"127.0.0.1', {Port.ENGINE}", f"127.0.0.1', {self.port}") for each in words]
        return subprocess.run([sys.executable, *words[1:]], check=False, timeout=60).returncode == 0

    def context(self, client: str = "client") -> ssl.SSLContext:
        """Of a client with this leaf, "" = none."""
        found = ssl.create_default_context(cafile=str(self.files.paths(ME)["ca"]))
        if client:
            found.load_cert_chain(self.files.paths(client)["cert"], self.files.paths(client)["key"])
        return found

    def shown(self) -> bytes | None:
        """The certificate that a new connection sees; None if there is none."""
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain,
                self.context().wrap_socket(plain, server_hostname=engine_name(ME)) as wrapped,
            ):
                return wrapped.getpeercert(binary_form=True)
        except OSError:
            return None

    def certificate(self) -> bytes:
        """The present one."""
        return ssl.PEM_cert_to_DER_cert(self.files.paths(ME)["cert"].read_text())

    def call(self, client: str = "client") -> httpx.Response:
        """One call. httpx.TransportError when the engine does not talk to this client."""
        with httpx.Client(verify=self.context(client), timeout=120) as http:
            body = {"model": "tiny", "prompt": "hi", "max_tokens": 4}
            named = {"sni_hostname": engine_name(ME)}
            return http.post(f"https://127.0.0.1:{self.port}/v1/completions", json=body, extensions=named)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = Engine(tmp_path_factory.mktemp("engine"))
    try:
        eventually(made.is_up, "vLLM serves", START_BOUND_S, poll_s=0.5)
        yield made
    finally:
        made.process.terminate()
        made.process.wait(60)


def test_it_serves_clients_with_a_certificate_of_the_cluster_and_nobody_else(engine: Engine) -> None:
    assert engine.call().status_code == 200
    # In TLS 1.3 the refusal comes after the handshake.
    with pytest.raises(httpx.TransportError):
        engine.call(client="")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{engine.port}/health", timeout=30)
    assert engine.is_alive()


def test_it_uses_each_renewed_certificate_without_a_restart(engine: Engine) -> None:
    """vLLM's watch notices only the first of two replacements of a file."""
    for _ in range(3):
        engine.files.sign()
        assert engine.shown() != engine.certificate()
        engine.renew()
        eventually(lambda: engine.shown() == engine.certificate(), "the renewed certificate is shown")
    assert engine.call().status_code == 200
    assert engine.is_alive()


def test_it_trusts_the_next_ca_once_it_is_announced(engine: Engine) -> None:
    old, engine.files.signer = engine.files.signer, engine.files.new_ca()
    engine.files.sign(trusted=(old,))
    with pytest.raises(httpx.TransportError):
        engine.call()
    engine.renew()
    eventually(lambda: engine.shown() == engine.certificate(), "the renewed certificate is shown")
    assert engine.call().status_code == 200
