"""Control planes and pickers are told the issuer of JWTs and see its keys; other pods do not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agentserving_operator.manifests import AgentServingCluster, desired
from agentserving_operator.spec.auth import Algorithm
from agentserving_process import options
from agentserving_process.web_tokens.jwks import ALGORITHMS
from agentserving_process.web_tokens.watch import TokenOptions
from support.operator_objects import make_cluster, pod_spec

JWT = {
    "issuer": "--https://issuer.example", "audience": "demo", "jwksSecretName": "issuer-keys",
    "tenantClaim": "/a/b", "algorithms": ["PS512"], "leewaySeconds": 5,
}  # fmt: skip


def workloads(cluster: AgentServingCluster) -> dict[str, Any]:
    return {
        each["metadata"]["name"]: each for each in desired(cluster) if each["kind"] in ("Deployment", "StatefulSet")
    }


@pytest.mark.parametrize(
    ("workload", "container"), [("demo-control-plane", "control-plane"), ("demo-gateway", "picker")]
)
def test_the_processes_that_verify_are_given_the_issuer(workload: str, container: str) -> None:
    pod = pod_spec(workloads(make_cluster(auth={"clients": "Keys", "jwt": JWT}))[workload])
    (one,) = [each for each in pod["containers"] if each["name"] == container]
    # Of its other flags some name files, which are read while they are parsed.
    flags = [each for each in one["args"] if each.startswith("--jwt")]
    assert one["args"][(at := one["args"].index("--client-auth")) : at + 2] == ["--client-auth", "keys"]
    tokens = options.parse(TokenOptions, prog="test", argv=flags, environment={})
    assert tokens == TokenOptions(
        jwt_issuer="--https://issuer.example", jwt_audience=("demo",),
        jwt_jwks_file="/etc/agentserving/jwt-issuer/jwks.json", jwt_algorithms=("PS512",), jwt_tenant_claim="/a/b",
        jwt_leeway_s=5.0,
    )  # fmt: skip
    (mount,) = [each for each in one["volumeMounts"] if each["name"] == "jwt-issuer"]
    assert tokens.jwt_jwks_file.startswith(mount["mountPath"] + "/")
    (volume,) = [each for each in pod["volumes"] if each["name"] == "jwt-issuer"]
    assert volume["secret"]["secretName"] == "issuer-keys"
    assert [each["key"] for each in volume["secret"]["items"]] == ["jwks.json"]


def test_no_other_pod_has_them_and_none_without() -> None:
    with_issuer = workloads(make_cluster(auth={"clients": "Keys", "jwt": JWT}))
    assert {name for name, each in with_issuer.items() if "issuer-keys" in json.dumps(each)} == {
        "demo-control-plane", "demo-gateway",
    }  # fmt: skip
    assert "jwt" not in json.dumps(desired(make_cluster(auth={"clients": "Keys"})))


def test_the_api_offers_what_processes_accept() -> None:
    assert {each.value for each in Algorithm} == set(ALGORITHMS)
