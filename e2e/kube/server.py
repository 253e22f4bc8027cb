"""A real API server on a real etcd and nothing else: no controllers, no nodes. Own ports and directory, a certain end.

What controllers would do (make pods, fill in status, collect garbage) tests do themselves, or leave undone.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from agentserving_cli.local.ports import free_ports
from kube.client import Kube
from support.etcd_server import EtcdServer

START_BOUND_S = 180.0
ADMIN, OPERATOR = "admin", "agentserving-operator"
AUDIT = {
    "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [OPERATOR]}, {"level": "None"}],
}  # fmt: skip


def find_program(name: str) -> str:
    """KUBE_APISERVER and alike, else the one on PATH, else the one that `e2e/kube/build` built."""
    given = os.environ.get(name.upper().replace("-", "_")) or shutil.which(name)
    if given:
        return given
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "agentserving"
    for found in sorted(home.glob(f"kube-*/{name}"), reverse=True):
        return str(found)
    raise FileNotFoundError(f"no {name}: run `make e2e-api`, which builds one")


class ApiServer:
    """After `start`, `admin` is a client with all rights, and `kubeconfig(user)` is a file for processes."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="agentserving-kube-"))
        self._etcd = EtcdServer()
        (self._port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._tokens = {user: secrets.token_hex(16) for user in (ADMIN, OPERATOR)}
        self.url = f"https://127.0.0.1:{self._port}"
        self.admin = Kube(self.url, self._tokens[ADMIN])

    def start(self) -> ApiServer:
        """Returns when it is ready. Raises TimeoutError with the end of its log."""
        self._etcd.start()
        self._prepare()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._argv(), stdout=log, stderr=log)
        deadline = time.monotonic() + START_BOUND_S
        while not self.admin.ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(self._log.read_text()[-3000:])
            time.sleep(0.2)
        return self

    @property
    def _log(self) -> Path:
        return self.directory / "apiserver.log"

    def _prepare(self) -> None:
        key = self.directory / "sa.key"
        subprocess.run(
            ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)], check=True
        )  # fmt: skip
        groups = {ADMIN: "system:masters", OPERATOR: ""}
        lines = [f'{token},{user},{user},"{groups[user]}"' for user, token in self._tokens.items()]
        (self.directory / "tokens.csv").write_text("\n".join(lines) + "\n")
        (self.directory / "audit.yaml").write_text(yaml.safe_dump(AUDIT))

    def _argv(self) -> list[str]:
        home = self.directory
        return [
            find_program("kube-apiserver"), "--etcd-servers", f"http://{self._etcd.endpoint}",
            "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--secure-port", str(self._port),
            "--cert-dir", str(home / "certs"), "--endpoint-reconciler-type", "none",
            "--service-cluster-ip-range", "10.96.0.0/16", "--service-account-issuer", "https://kubernetes.default.svc",
            "--service-account-key-file", str(home / "sa.key"),
            "--service-account-signing-key-file", str(home / "sa.key"),
            "--token-auth-file", str(home / "tokens.csv"), "--authorization-mode", "RBAC",
            # The controller that creates accounts and tokens does not run here.
            "--disable-admission-plugins", "ServiceAccount",
            # As on OpenShift: setting blockOwnerDeletion requires a right on the owner.
            "--enable-admission-plugins", "OwnerReferencesPermissionEnforcement",
            # Policies that mutate objects in the API server itself, in place of a webhook.
            "--feature-gates", "MutatingAdmissionPolicy=true",
            "--runtime-config", "admissionregistration.k8s.io/v1beta1=true",
            "--audit-policy-file", str(home / "audit.yaml"), "--audit-log-path", str(home / "audit.log"),
        ]  # fmt: skip

    def kubeconfig(self, user: str, url: str = "") -> Path:
        """A kubeconfig for a process of that user. `url`: a proxy to use instead of the API server."""
        path = self.directory / (f"{user}-{url.rpartition(':')[2]}.kubeconfig" if url else f"{user}.kubeconfig")
        cluster = {"server": url} if url else {"server": self.url, "insecure-skip-tls-verify": True}
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "e2e",
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": user}}],
            "clusters": [{"name": "e2e", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": self._tokens[user]}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(document))
        return path

    def audited(self) -> list[dict[str, Any]]:
        """Requests of the operator's user so far."""
        path = self.directory / "audit.log"
        # The last line may be incomplete.
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def close(self) -> None:
        """Ends API server and etcd, and deletes their data."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.admin.close()
        self._etcd.close()
        shutil.rmtree(self.directory, ignore_errors=True)
