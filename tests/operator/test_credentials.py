"""Logging in: by a service account or a kubeconfig, over TLS, and with a token that is renewed on disk."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from agentserving_operator.api_server import ApiServer
from agentserving_operator.credentials import REFRESH_S, Credentials, NoCredentialsError, login
from agentserving_operator.errors import UnavailableError
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs
from support.certificate_files import CertificateFiles

HOSTS = {"server": ["127.0.0.1"], "client": []}


class TlsServer:
    """An API server that notes the Authorization headers and client certificates that it is shown."""

    def __init__(self, certificates: CertificateFiles) -> None:
        self.tokens: list[str | None] = []
        self.certificates: list[Any] = []
        paths = certificates.paths("server")
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(paths["ca"]))
        self._context.load_cert_chain(paths["cert"], paths["key"])
        self._context.verify_mode = ssl.CERT_OPTIONAL

    async def _answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        self.tokens.append(request.headers.get("Authorization"))
        self.certificates.append(request.transport.get_extra_info("peercert"))
        return web.json_response({"items": []})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """Serves HTTPS on a port of 127.0.0.1, which it yields."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        server = TestServer(app, scheme="https", host="127.0.0.1")
        await server.start_server(ssl=self._context)
        try:
            assert server.port is not None
            yield server.port
        finally:
            await server.close()


class Pod:
    """A service account's files, and the variables of a pod."""

    def __init__(self, directory: Path, certificates: CertificateFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self._variables = directory / "serviceaccount", monkeypatch
        self.directory.mkdir()
        (self.directory / "ca.crt").write_bytes(certificates.paths("server")["ca"].read_bytes())
        self.renew("first")

    def renew(self, token: str) -> None:
        """As the kubelet renews it."""
        (self.directory / "token").write_text(token + "\n")

    def login(self, port: int, host: str = "127.0.0.1") -> Any:
        self._variables.setenv("KUBERNETES_SERVICE_HOST", host)
        self._variables.setenv("KUBERNETES_SERVICE_PORT", str(port))
        return login(service_account=self.directory)


@pytest.fixture(autouse=True)
def outside_kubernetes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither variables nor a kubeconfig of the user."""
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    # Set before it is deleted, so that what `login` sets is taken back, too.
    monkeypatch.setenv("KUBECONFIG", "")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def certificates(tmp_path: Path) -> CertificateFiles:
    return CertificateFiles(tmp_path / "certificates", HOSTS)


@pytest.fixture
def pod(tmp_path: Path, certificates: CertificateFiles, monkeypatch: pytest.MonkeyPatch) -> Pod:
    return Pod(tmp_path, certificates, monkeypatch)


def kubeconfig(directory: Path, cluster: dict[str, Any], user: dict[str, Any]) -> Path:
    document = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [{"name": "c", "cluster": cluster}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": user}],
    }  # fmt: skip
    path = directory / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


async def test_a_token_that_was_renewed_on_disk_is_used_within_a_minute(
    pod: Pod, certificates: CertificateFiles
) -> None:
    server, now = TlsServer(certificates), [0.0]
    async with (
        server.serving() as port,
        ApiServer(Credentials(lambda: pod.login(port), clock=lambda: now[0])) as api,
    ):
        await api.find("Pod", "ns")
        pod.renew("second")
        now[0] += REFRESH_S - 1
        await api.find("Pod", "ns")
        now[0] += 1
        await api.find("Pod", "ns")
        # For a moment there is no token; the last one is valid a while longer.
        (pod.directory / "token").unlink()
        now[0] += REFRESH_S
        with capture_logs() as logs:
            await api.find("Pod", "ns")
        pod.renew("third")
        now[0] += REFRESH_S
        await api.find("Pod", "ns")
    assert server.tokens == [f"Bearer {each}" for each in ("first", "first", "second", "second", "third")]
    assert [each["event"] for each in logs] == ["credentials could not be read again"]


async def test_a_server_that_the_service_accounts_ca_did_not_sign_gets_no_token(pod: Pod, tmp_path: Path) -> None:
    server = TlsServer(CertificateFiles(tmp_path / "other", HOSTS))
    async with server.serving() as port, ApiServer(Credentials(lambda: pod.login(port))) as api:
        with pytest.raises(UnavailableError, match="certificate verify failed"):
            await api.find("Pod", "ns")
    assert server.tokens == []


@pytest.mark.parametrize("embedded", [False, True], ids=["files", "data"])
async def test_a_kubeconfig_may_have_a_client_certificate(
    embedded: bool, certificates: CertificateFiles, tmp_path: Path
) -> None:
    server, paths = TlsServer(certificates), certificates.paths("client")

    def field(name: str, path: Path) -> dict[str, str]:
        return {f"{name}-data": base64.b64encode(path.read_bytes()).decode()} if embedded else {name: str(path)}

    async with server.serving() as port:
        cluster = {"server": f"https://127.0.0.1:{port}/", **field("certificate-authority", paths["ca"])}
        user = {**field("client-certificate", paths["cert"]), **field("client-key", paths["key"])}
        async with await ApiServer.connect(str(kubeconfig(tmp_path, cluster, user))) as api:
            assert await api.find("Pod", "ns") == []
    assert server.tokens == [None]
    assert server.certificates != [None]


def test_the_flag_comes_before_the_pod_and_the_pod_before_the_users_kubeconfig(
    pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kubeconfig(tmp_path, {"server": "https://flag"}, {"token": "t"})
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert pod.login(1, "fd00::1").server == "https://[fd00::1]:1"
    assert login(str(path), pod.directory).server == "https://flag"
    (pod.directory / "token").unlink()
    assert login(service_account=pod.directory).server == "https://flag"


@pytest.mark.parametrize(
    "document",
    [
        None, "", "{", "[]", "[1]", "current-context: a", "current-context: a\ncontexts: 1",
        "current-context: a\ncontexts: [{name: a}]",
        "{current-context: a, contexts: [{name: a, context: {cluster: c, user: u}}], clusters: [{name: c}], "
        "users: [{name: u}]}",
    ],
)  # fmt: skip
def test_a_kubeconfig_that_cannot_be_used_is_named_as_the_reason(document: str | None, tmp_path: Path) -> None:
    path = tmp_path / "broken"
    if document is not None:
        path.write_text(document)
    with pytest.raises(NoCredentialsError):
        login(str(path))


def test_without_any_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoCredentialsError, match="neither a service account nor a kubeconfig"):
        login(service_account=tmp_path)
