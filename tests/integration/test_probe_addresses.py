"""Probes and metrics are served only on the address of `--http-host`."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support.component import Component
from support.eventually import eventually


def answers(host: str, port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize("module", ["agentserving_controlplane", "agentserving_gateway", "agentserving_sidecar"])
def test_probes_are_served_on_the_configured_address_only(module: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    flags: dict[str, dict[str, object]] = {
        "agentserving_controlplane": {"listen": "127.0.0.1:0", "ticket_key_file": tmp_path / "key"},
        "agentserving_gateway": {"run_dir": tmp_path},
        "agentserving_sidecar": {
            "listen": "127.0.0.1:0", "engine_id": "e",
            "engine_address": "127.0.0.1:9", "channel_dir": tmp_path, "state_dir": tmp_path / "s",
        },
    }  # fmt: skip
    component = Component(module, tmp_path, http_host="127.0.0.2", **flags[module]).start()
    try:

        def serves() -> bool:
            assert component.process is not None
            assert component.process.poll() is None, component.log.read_text()
            return answers("127.0.0.2", component.http_port)

        eventually(serves, f"{module} answers probes on 127.0.0.2", deadline_s=60)
        assert not answers("127.0.0.1", component.http_port)
    finally:
        component.kill()
