"""Probes are answered where they are asked for: on loopback unless told otherwise, in a pod on its own address."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support.component import Component


def answers(host: str, port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize("module", ["agentserving_controlplane", "agentserving_gateway", "agentserving_sidecar"])
def test_probes_are_answered_on_the_address_asked_for(module: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    flags: dict[str, dict[str, object]] = {
        "agentserving_controlplane": {"ticket_key_file": tmp_path / "key"},
        "agentserving_gateway": {},
        "agentserving_sidecar": {
            "engine_id": "e", "engine_address": "127.0.0.1:9", "channel_dir": tmp_path, "state_dir": tmp_path / "s",
        },
    }  # fmt: skip
    component = Component(module, tmp_path, listen="127.0.0.1:0", http_host="127.0.0.2", **flags[module]).start()
    try:
        deadline = time.monotonic() + 60
        while not answers("127.0.0.2", component.http_port):
            assert component.process is not None
            assert component.process.poll() is None, component.log.read_text()
            assert time.monotonic() < deadline, component.log.read_text()
            time.sleep(0.05)
        assert not answers("127.0.0.1", component.http_port)
    finally:
        component.kill()
