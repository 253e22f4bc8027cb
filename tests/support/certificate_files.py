"""Certificates of a cluster as files, as its pods find them: made by the operator's code, replaced in use."""

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
# No control plane's certificate knows an address. etcd's does here: tests have no names for its members.
HOSTS = {
    "control-plane": [SERVER_NAME, "localhost"],
    "etcd": ["localhost", "127.0.0.1"],
    "engine": [SIDECAR_NAME],
    "client": [],
}


def now() -> datetime.datetime:
    """Certificates are looked at by clocks that are not ours."""
    return datetime.datetime.now(datetime.UTC)


class CertificateFiles:
    """`<leaf>-tls/ca.crt`, `tls.crt` and `tls.key` below a directory: named as the volumes of pods."""

    def __init__(self, directory: Path, hosts: dict[str, list[str]] | None = None) -> None:
        self._directory, self._hosts = directory, hosts or HOSTS
        self.signer = self.new_ca()
        self.sign()

    @staticmethod
    def new_ca() -> Pair:
        """Of nobody's trust yet."""
        return renewed("demo", None, {}, {}, now()).authority.ca

    def sign(self, *, trusted: tuple[Pair, ...] = ()) -> None:
        """New leaves by `signer`, which is trusted, and so are `trusted`."""
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
        """ca, cert and key."""
        place = self._directory / f"{leaf}-tls"
        return {"ca": place / "ca.crt", "cert": place / "tls.crt", "key": place / "tls.key"}

    def flags(self, leaf: str, prefix: str = "tls") -> dict[str, object]:
        """Of a component."""
        return {f"{prefix}_{name}": path for name, path in self.paths(leaf).items()}

    def client_flags(self, leaf: str = "client") -> dict[str, object]:
        """Of those who dial control planes."""
        return {**self.flags(leaf), "tls_server_name": SERVER_NAME}

    def client(self) -> Tls:
        """A client's."""
        return Tls(**self.paths("client"), server_name=SERVER_NAME)

    def pem(self) -> Pem:
        """A client's, as it is now."""
        return self.client().read()

    def channel(self, address: str) -> grpc.aio.Channel:
        """To a control plane."""
        options = [
            ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.ssl_target_name_override", SERVER_NAME),
        ]  # fmt: skip
        return grpc.aio.secure_channel(address, self.pem().credentials(), options=options)

    def etcd_flags(self) -> list[str]:
        """Of an etcd that asks for client certificates."""
        paths = self.paths("etcd")
        return [
            "--cert-file", str(paths["cert"]), "--key-file", str(paths["key"]),
            "--trusted-ca-file", str(paths["ca"]), "--client-cert-auth",
        ]  # fmt: skip

    def etcd_ready(self, url: str) -> bool:
        """Whether an etcd answers."""
        paths = self.paths("client")
        context = ssl.create_default_context(cafile=str(paths["ca"]))
        context.load_cert_chain(paths["cert"], paths["key"])
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1, context=context) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
