"""What an operator may set about the front. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agentserving_process.addresses import split_address

from agentserving_gateway.identity import HEADERS

MAX_CONNECTIONS = 20_000
# Shorter than the timeouts of common clients (600 s of OpenAI's and Anthropic's), so that they get an answer that says
# what to do, and not a broken connection.
BUDGET_HOLD_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontSettings:
    """One Envoy with one picker."""

    listen: str
    run_dir: Path
    # Clients have keys: they are removed, and nothing is served without the picker, which verifies them.
    client_keys: bool = False
    # Clients use TLS: a certificate chain and its private key, PEM files. Both or neither.
    front_cert: Path | None = None
    front_key: Path | None = None
    # Engines speak TLS, with certificates of this CA, a PEM file; None: they speak http.
    engine_ca: Path | None = None
    # Our own certificate and its private key, for engines that ask for one, PEM files. Both or neither.
    engine_cert: Path | None = None
    engine_key: Path | None = None
    # OpenAI's own limit for images is 50 MB; base64 of several screenshots exceeds 8 MiB.
    max_body_bytes: int = 64 << 20
    # Above vLLM's and uvicorn's own 64 KiB no engine would take the head anyway.
    max_head_kib: int = 64
    max_connections: int = MAX_CONNECTIONS
    # Above 90 % of it no new request is accepted. Bodies that still arrive are ended: over HTTP/2 from 70 % on, those
    # that hold most; over HTTP/1.1 above 95 %.
    max_heap_bytes: int = 1 << 30
    # Longer than the pools of common clients and load balancers (nginx 60 s, Go 90 s, AWS ALB 60 s, GCP 600 s).
    keep_alive_s: float = 620.0
    # Where the batch service listens, unix:PATH or host:port; empty: there is none, and no files and batches.
    batches: str = ""
    # How long the picker may hold a call while there is no engine.
    hold_s: float = 0.0
    # And while the budget of its program is spent.
    budget_hold_s: float = BUDGET_HOLD_S
    # Headers that name programs and what belongs to them, for the picker.
    identity_headers: tuple[str, ...] = HEADERS
    # A client may take so long for the head, and for the whole request.
    head_s: float = 10.0
    request_s: float = 120.0
    # Where many connections are open, idle ones are closed earlier, down to this.
    crowded_keep_alive_s: float = 1.0
    # How long a drained connection may stay open for an answer in progress.
    drain_s: float = 600.0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port; an empty host is every interface."""
        host, port = split_address(self.listen)
        return host or "0.0.0.0", port

    @property
    def picker_socket(self) -> str:
        return str(self.run_dir / "picker.sock")

    @property
    def reads_socket(self) -> str:
        return str(self.run_dir / "reads.sock")

    @property
    def log_socket(self) -> str:
        return str(self.run_dir / "log.sock")

    @property
    def admin_socket(self) -> str:
        return str(self.run_dir / "admin.sock")

    @property
    def keys_file(self) -> Path:
        """Hashes of clients' keys, the picker's own."""
        return self.run_dir / "keys.json"

    @property
    def front_secret(self) -> Path:
        """Names the files of the front's certificate to Envoy."""
        return self.run_dir / "secrets" / "front.json"

    @property
    def crowd_file(self) -> Path:
        """What share of the connections is open, from 0 to 1: Envoy's own count cannot trigger an action."""
        return self.run_dir / "crowd" / "connections"

    @property
    def engines_secret(self) -> Path:
        """Names the CA of engines to Envoy."""
        return self.run_dir / "secrets" / "engines.json"

    @property
    def engine_client_secret(self) -> Path:
        """Names the files of the certificate that engines see to Envoy."""
        return self.run_dir / "secrets" / "engine-client.json"

    @property
    def engines_file(self) -> Path:
        return self.run_dir / "engines" / "eds.json"
