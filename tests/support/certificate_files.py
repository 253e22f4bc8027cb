"""A cluster's certificates as its pods see them: files issued by the operator's code, replaced while in use."""

from __future__ import annotations

import datetime
import os
import ssl
import tempfile
import urllib.request
from pathlib import Path

import grpc
from agentserving.contract.names import SIDECAR_NAME
from agentserving.transport.connection import Pem, Tls
from agentserving_operator.certificates.renewal import renewed
from agentserving_operator.certificates.values import Authority, Pair

SERVER_NAME = "demo-control-plane.ns.svc"
# Control planes' certificates contain no address. etcd's do in tests, which have no DNS names for its members.
HOSTS = {
    "control-plane": [SERVER_NAME, "localhost"],
    "etcd": ["localhost", "127.0.0.1"],
    "engine": [SIDECAR_NAME],
    "client": [],
}


def now() -> datetime.datetime:
    """Wall time: TLS libraries check certificates against it."""
    return datetime.datetime.now(datetime.UTC)


class CertificateFiles:
    """`<leaf>-tls/{ca.crt,tls.crt,tls.key}` below a directory, named like the volumes of pods."""

    def __init__(self, directory: Path, hosts: dict[str, list[str]] | None = None) -> None:
        self._directory, self._hosts = directory, hosts or HOSTS
        self.signer = self.new_ca()
        self.sign()

    @staticmethod
    def new_ca() -> Pair:
        """A CA that no process trusts yet."""
        return renewed("demo", None, {}, {}, now()).authority.ca

    def sign(self, *, trusted: tuple[Pair, ...] = ()) -> None:
        """Replaces all leaves by ones signed by `signer`; the trusted CAs are `signer` and `trusted`."""
        made = renewed("demo", Authority(self.signer), {}, self._hosts, now())
        ca = b"".join(each.cert for each in (self.signer, *trusted))
        for leaf, pair in made.leaves.items():
            place = self._directory / f"{leaf}-tls"
            place.mkdir(parents=True, exist_ok=True)
            for name, data in (("ca.crt", ca), ("tls.crt", pair.cert), ("tls.key", pair.key)):
                whole = Path(tempfile.mkstemp(dir=place)[1])
                whole.write_bytes(data)
                os.replace(whole, place / name)

    def paths(self, leaf: str) -> dict[str, Path]:
        """Files of a leaf, by `ca`, `cert` and `key`."""
        place = self._directory / f"{leaf}-tls"
        return {"ca": place / "ca.crt", "cert": place / "tls.crt", "key": place / "tls.key"}

    def flags(self, leaf: str, prefix: str = "tls") -> dict[str, object]:
        """A component's flags for its server certificate."""
        return {f"{prefix}_{name}": path for name, path in self.paths(leaf).items()}

    def client_flags(self, leaf: str = "client") -> dict[str, object]:
        """A component's flags for connecting to control planes."""
        return {**self.flags(leaf), "tls_server_name": SERVER_NAME}

    def client(self) -> Tls:
        """TLS settings of a client, read when it connects."""
        return Tls(**self.paths("client"), server_name=SERVER_NAME)

    def pem(self) -> Pem:
        """TLS settings of a client with the current contents of the files."""
        return self.client().read()

    def channel(self, address: str) -> grpc.aio.Channel:
        """A channel to a control plane."""
        options = [
            ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.ssl_target_name_override", SERVER_NAME),
        ]  # fmt: skip
        return grpc.aio.secure_channel(address, self.pem().credentials(), options=options)

    def etcd_flags(self) -> list[str]:
        """Flags of an etcd that requires client certificates."""
        paths = self.paths("etcd")
        return [
            "--cert-file", str(paths["cert"]), "--key-file", str(paths["key"]),
            "--trusted-ca-file", str(paths["ca"]), "--client-cert-auth",
        ]  # fmt: skip

    def etcd_ready(self, url: str) -> bool:
        """True if an etcd with these certificates answers."""
        paths = self.paths("client")
        context = ssl.create_default_context(cafile=str(paths["ca"]))
        context.load_cert_chain(paths["cert"], paths["key"])
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1, context=context) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
