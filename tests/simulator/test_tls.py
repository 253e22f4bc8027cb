"""A simulated engine may speak TLS, with a certificate that is renewed while it serves."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from agentserving.contract.names import engine_name
from agentserving.contract.signatures import public_bytes
from agentserving_cli.local.ports import free_ports
from agentserving_simulator.__main__ import main
from support.certificate_files import CertificateFiles
from support.eventually import eventually


def shown(port: int, context: ssl.SSLContext) -> bytes | None:
    """The certificate that a new connection sees."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=engine_name("e0")) as wrapped,
        ):
            return wrapped.getpeercert(binary_form=True)
    except OSError:
        return None


def test_it_serves_by_tls_and_uses_a_renewed_certificate(tmp_path: Path) -> None:
    files = CertificateFiles(tmp_path, {"engine": [engine_name("e0")], "client": []})
    paths = files.paths("engine")
    (tmp_path / "ticket.pub").write_bytes(public_bytes(b"0" * 32))
    (port,) = free_ports(1)
    argv = [
        sys.executable, "-m", "agentserving_simulator", "--listen", f"127.0.0.1:{port}", "--engine-id", "e0",
        "--tls-cert", str(paths["cert"]), "--tls-key", str(paths["key"]),
        "--ticket-key-file", str(tmp_path / "ticket.pub"),
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as out:
        engine = subprocess.Popen(argv, stdout=out, stderr=out)
    context = ssl.create_default_context(cafile=str(paths["ca"]))
    try:
        eventually(lambda: shown(port, context) is not None, "it serves")
        before = shown(port, context)
        with pytest.raises(OSError, match=r".+"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
        files.sign()
        eventually(lambda: shown(port, context) not in (None, before), "the new certificate is used")
    finally:
        engine.kill()
        engine.wait()


def test_with_a_ca_it_serves_nobody_without_a_certificate(tmp_path: Path) -> None:
    files = CertificateFiles(tmp_path, {"engine": [engine_name("e0")], "client": []})
    paths = files.paths("engine")
    (port,) = free_ports(1)
    argv = [
        sys.executable, "-m", "agentserving_simulator", "--listen", f"127.0.0.1:{port}", "--engine-id", "e0",
        *(f"--tls-{name}={path}" for name, path in paths.items()),
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as out:
        engine = subprocess.Popen(argv, stdout=out, stderr=out)
    try:
        eventually(lambda: served(port, files, "client") == 200, "it serves a client with a certificate")
        assert served(port, files, "") is None
        # A client of the next CA is served as soon as it is announced.
        old, files.signer = files.signer, files.new_ca()
        files.sign(trusted=(old,))
        eventually(lambda: served(port, files, "client") == 200, "the new CA is trusted")
    finally:
        engine.kill()
        engine.wait()


def served(port: int, files: CertificateFiles, client: str) -> int | None:
    """Status of GET /health to `client`, the leaf of its certificate, "" = none; None when it is not served."""
    context = ssl.create_default_context(cafile=str(files.paths("engine")["ca"]))
    if client:
        context.load_cert_chain(files.paths(client)["cert"], files.paths(client)["key"])
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=engine_name("e0")) as wrapped,
        ):
            wrapped.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return int(wrapped.recv(100).split(b" ")[1])
    except (OSError, IndexError):
        return None


def test_a_certificate_without_its_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--listen", "127.0.0.1:0", "--engine-id", "e0", "--tls-cert", "tls.crt"])
    assert ended.value.code == 2
    assert "--tls-cert and --tls-key" in capsys.readouterr().err
