"""`agentserving up` with a certificate: clients use https, and every command finds the cluster as before."""

from __future__ import annotations

import datetime
import json
import os
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import httpx
import openai
import pytest
from agentserving_gateway.ext_proc.self_signed import self_signed
from integration.local_cluster import Cluster

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(240)]


def _a_batch_completes(cluster: Cluster, context: ssl.SSLContext) -> None:
    """The batch service is a client of the gateway as well."""
    line = {
        "custom_id": "a", "method": "POST", "url": "/v1/completions",
        "body": {"model": "tiny", "prompt": "x", "max_tokens": 2},
    }  # fmt: skip
    http = httpx.Client(verify=context, trust_env=False)
    with openai.OpenAI(base_url=cluster.addresses["gateway"], api_key=cluster.key, http_client=http) as client:
        file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        cluster.wait(lambda: client.batches.retrieve(batch.id).output_file_id is not None)


def test_clients_use_https(tmp_path: Path) -> None:
    key, cert = self_signed(datetime.datetime.now(datetime.UTC))
    (tmp_path / "tls.key").write_bytes(key)
    (tmp_path / "tls.crt").write_bytes(cert)
    files = ("--tls-cert", str(tmp_path / "tls.crt"), "--tls-key", str(tmp_path / "tls.key"))
    cluster = Cluster(tmp_path / "state", "--engine", "simulator", "--engines", "1", *files, auth=True)
    try:
        url = cluster.addresses["gateway"]
        assert url.startswith("https://localhost:")
        context = ssl.create_default_context(cadata=cert.decode())
        headers = {
            "content-type": "application/json", "authorization": f"Bearer {cluster.key}",
            "x-agentserving-program-id": "by-https",
        }  # fmt: skip
        body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 2}).encode()
        request = urllib.request.Request(url + "/completions", body, headers)
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            assert answer.status == 200
        assert cluster.program("by-https")["program_id"] == "by-https"
        _a_batch_completes(cluster, context)
        # What `helm test` runs, with the CA that it is given.
        argv = [sys.executable, "-m", "agentserving_gateway.smoke", url]
        env = {**os.environ, "OPENAI_API_KEY": cluster.key}
        for ca, expected in ((str(tmp_path / "tls.crt"), 0), ("", 1)):
            given = {"SSL_CERT_FILE": ca} if ca else {}
            done = subprocess.run(argv, env={**env, **given}, capture_output=True, text=True, timeout=100, check=False)
            assert done.returncode == expected, done.stderr
    finally:
        cluster.close()
