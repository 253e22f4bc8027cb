"""`agentserving up` with an organisation's issuer: its JWTs open the gateway and the control plane, and are rotated."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import agentserving
import pytest
from agentserving.transport.connection import Settings
from agentserving.transport.errors import AgentServingError
from integration.local_cluster import Cluster
from support.token_issuer import AUDIENCE, EC_KEY, ISSUER, RSA_KEY, jwk, jwks, replace, token

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(240)]

# A new JWK Set is in force everywhere within this time.
IN_FORCE_S = 5.0


def call(cluster: Cluster, credential: str, program: str) -> tuple[int, Any]:
    headers = {
        "content-type": "application/json", "x-agentserving-program-id": program,
        "authorization": f"Bearer {credential}",
    }  # fmt: skip
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 2}).encode()
    request = urllib.request.Request(cluster.addresses["gateway"] + "/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def programs(cluster: Cluster, credential: str) -> list[str]:
    settings = Settings(tls=None, attempts=1)
    with agentserving.Client(cluster.addresses["control_plane"], api_key=credential, settings=settings) as client:
        return [each.program_id for each in client.list_programs()]


def opens_nothing(cluster: Cluster, credential: str) -> bool:
    if call(cluster, credential, "p")[0] != 401:
        return False
    try:
        programs(cluster, credential)
    except AgentServingError as error:
        return error.reason == "UNKNOWN_SIGNING_KEY"
    return False


def test_an_issuers_tokens_open_until_its_key_is_withdrawn(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks(jwk(RSA_KEY, "rsa-1"), jwk(EC_KEY, "ec-1")))
    flags = ("--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE, "--jwt-jwks-file", str(file))
    old, new = token(tenant="acme"), token(tenant="globex", key=EC_KEY, kid="ec-1", alg="ES256")
    cluster = Cluster(tmp_path / "state", "--engine", "simulator", "--engines", "1", *flags, auth=True)
    try:
        for text, program in ((old, "of-acme"), (new, "of-globex")):
            assert call(cluster, text, program)[0] == 200
            assert programs(cluster, text) == [program]
        assert call(cluster, cluster.key, "p")[0] == 200
        status, body = call(cluster, token(aud="another"), "p")
        assert (status, body["error"]["code"]) == (401, "invalid_token")
        replace(file, jwks(jwk(EC_KEY, "ec-1")))
        began = time.monotonic()
        while not opens_nothing(cluster, old):
            assert time.monotonic() - began < IN_FORCE_S
            time.sleep(0.1)
        assert call(cluster, new, "of-globex")[0] == 200
    finally:
        cluster.close()
    # Envoy writes its log by and by, and the rest at its end.
    logs = {each.name: each.read_text() for each in (tmp_path / "state" / "logs").glob("*.log")}
    keys = {json.loads(line)["key"] for line in logs["gateway.log"].splitlines() if line.startswith("{")}
    assert {"jwt:rsa-1:ci-bot", "jwt:ec-1:ci-bot"} <= keys
    assert not [name for name, text in logs.items() if old in text or new in text]
