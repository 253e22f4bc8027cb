"""With TLS, every component gets valid flags that name its certificates; without, no object mentions TLS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from agentserving_controlplane.settings import parse
from agentserving_gateway.__main__ import Settings as GatewaySettings
from agentserving_operator.certificates.renewal import renewed
from agentserving_operator.manifests import AgentServingCluster, Manifest, desired
from agentserving_operator.manifests.certificate_objects import authority_of, leaves, pair_of, secrets
from agentserving_operator.manifests.control_plane_deployment import control_plane_deployment
from agentserving_operator.manifests.engine_pod import KEY_FILE
from agentserving_operator.manifests.engine_statefulset import engine_statefulset
from agentserving_operator.manifests.etcd_statefulset import etcd_endpoints, etcd_statefulset
from agentserving_operator.manifests.gateway_deployment import gateway_deployment
from agentserving_operator.manifests.tls import Leaf, secret_name
from agentserving_process import options
from agentserving_sidecar.settings import Settings as SidecarSettings
from support.certificate_files import now
from support.operator_objects import make_cluster, only_container, pod_spec

TLS: dict[str, Any] = {"issuer": "Operator"}
BY_CERT_MANAGER: dict[str, Any] = {"issuer": "CertManager", "issuerRef": {"name": "ca", "kind": "ClusterIssuer"}}


def mounted(workload: Manifest, path: str, container: Manifest | None = None) -> str:
    """Name of the Secret that a file comes from."""
    one = container or only_container(workload)
    (mount,) = [each for each in one["volumeMounts"] if path.startswith(f"{each['mountPath']}/")]
    assert mount["readOnly"] is True
    assert "subPath" not in mount
    (volume,) = [each for each in pod_spec(workload)["volumes"] if each["name"] == mount["name"]]
    return str(volume["secret"]["secretName"])


def test_a_control_plane_uses_its_own_certificate_as_server_and_the_client_certificate_for_etcd(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    made = control_plane_deployment(make_cluster(tls=TLS))
    arguments = [str(tmp_path / "key") if each == KEY_FILE else each for each in only_container(made)["args"]]
    found = parse(arguments)
    for path, name in (
        (found.tls.tls_cert, "tls.crt"), (found.tls.tls_key, "tls.key"), (found.tls.tls_ca, "ca.crt"),
    ):  # fmt: skip
        assert Path(path).name == name
        assert mounted(made, path) == "demo-control-plane-tls"
    for path in (found.store.etcd_tls_cert, found.store.etcd_tls_key, found.store.etcd_tls_ca):
        assert mounted(made, path) == "demo-client-tls"


def test_an_external_etcd_has_the_users_certificates(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    external = {"endpoints": ["a:1"], "tlsSecretName": "theirs"}
    made = control_plane_deployment(make_cluster(tls=TLS, store={"type": "ExternalEtcd", "external": external}))
    found = parse([str(tmp_path / "key") if each == KEY_FILE else each for each in only_container(made)["args"]])
    assert mounted(made, found.store.etcd_tls_ca) == "theirs"
    assert mounted(made, found.tls.tls_ca) == "demo-control-plane-tls"
    assert "demo-client-tls" not in json.dumps(made)


def test_gateways_and_sidecars_verify_a_name_that_control_planes_have() -> None:
    cluster = make_cluster(tls=TLS)
    front, engine = gateway_deployment(cluster), engine_statefulset(cluster)
    (sidecar,) = pod_spec(engine)["initContainers"]
    for workload, container, settings, secret in (
        (front, pod_spec(front)["containers"][1], GatewaySettings, "demo-client-tls"),
        (engine, sidecar, SidecarSettings, "demo-engine-tls"),
    ):
        given = options.parse(settings, prog="test", argv=container["args"], environment={}).leader  # type: ignore[attr-defined]
        for path in (given.tls_ca, given.tls_cert, given.tls_key):
            assert mounted(workload, path, container) == secret
        assert given.tls_server_name in leaves(cluster)[Leaf.CONTROL_PLANE]
        assert given.control_plane.rpartition(":")[0] in leaves(cluster)[Leaf.CONTROL_PLANE]


@pytest.mark.parametrize("members", [1, 3])
def test_etcd_uses_tls_except_for_probes(members: int) -> None:
    cluster = make_cluster(tls=TLS, store={"etcd": {"members": members}})
    made = etcd_statefulset(cluster)
    (one,) = pod_spec(made).get("initContainers") or [only_container(made)]
    arguments = dict(each.partition("=")[::2] for each in one["args"])
    for name in ("listen-client-urls", "advertise-client-urls", "listen-peer-urls", "initial-advertise-peer-urls"):
        assert arguments[f"--{name}"].startswith("https://")
    assert arguments["--listen-metrics-urls"].startswith("http://")
    peers = dict(each.split("=", 1) for each in arguments["--initial-cluster"].split(","))
    assert len(peers) == members
    names = leaves(cluster)[Leaf.ETCD]
    assert {url.removeprefix("https://").removesuffix(":2380") for url in peers.values()} <= set(names)
    assert {endpoint.rpartition(":")[0] for endpoint in etcd_endpoints(cluster)} <= set(names)
    for prefix in ("", "peer-"):
        assert f"--{prefix}client-cert-auth" in arguments
        for flag in ("cert-file", "key-file", "trusted-ca-file"):
            assert mounted(made, arguments[f"--{prefix}{flag}"]) == "demo-etcd-tls"


def test_other_cas_replace_etcds_pods_which_read_them_at_their_start() -> None:
    def template(trust: str) -> Any:
        cluster = make_cluster(tls=TLS)
        return etcd_statefulset(
            AgentServingCluster(
                name=cluster.name, namespace=cluster.namespace, uid=cluster.uid, spec=cluster.spec,
                images=cluster.images, trust=trust,
            )
        )["spec"]["template"]  # fmt: skip

    assert template("a") == template("a")
    assert template("a") != template("b")
    assert "annotations" not in template("")["metadata"]


@pytest.mark.parametrize("store", [{}, {"type": "Memory"}])
def test_without_tls_no_object_mentions_it(store: dict[str, Any]) -> None:
    objects = json.dumps(desired(make_cluster(store=store)))
    assert "tls" not in objects
    assert "https" not in objects
    assert "tls" in json.dumps(desired(make_cluster(store=store, tls=TLS)))


def test_only_our_own_etcd_has_a_certificate() -> None:
    assert set(leaves(make_cluster(tls=TLS, store={"type": "Memory"}))) == set(Leaf) - {Leaf.ETCD}
    assert set(leaves(make_cluster(tls=TLS))) == set(Leaf)


def test_the_client_certificate_has_no_names() -> None:
    """No one can impersonate a server with it."""
    assert leaves(make_cluster(tls=TLS))[Leaf.CLIENT] == []


def test_secrets_are_read_back_as_written() -> None:
    cluster = make_cluster(tls=TLS)
    hosts = {leaf.value: names for leaf, names in leaves(cluster).items()}
    made = renewed("demo", None, {}, hosts, now())
    ca, *rest = secrets(cluster, made)
    assert authority_of(ca) == made.authority
    assert {each["metadata"]["name"] for each in rest} == {secret_name("demo", leaf) for leaf in Leaf}
    for leaf, each in zip(leaves(cluster), rest, strict=True):
        assert pair_of(each) == made.leaves[leaf.value]
        # A certificate comes with the trusted CAs, and never with the CA's key.
        assert set(each["data"]) == {"tls.crt", "tls.key", "ca.crt"}
    for nothing in (None, {}, {"data": {}}, {"data": {"tls.crt": "?", "tls.key": "?"}}):
        assert authority_of(nothing) is None


def test_no_pod_has_the_cas_key() -> None:
    assert "demo-ca" not in json.dumps(desired(make_cluster(tls=TLS)))


def test_certificates_for_cert_manager_match_what_we_would_issue() -> None:
    cluster = make_cluster(tls=BY_CERT_MANAGER)
    asked = {each["metadata"]["name"]: each["spec"] for each in desired(cluster) if each["kind"] == "Certificate"}
    assert set(asked) == {secret_name("demo", leaf) for leaf in Leaf}
    for leaf, names in leaves(cluster).items():
        spec = asked[secret_name("demo", leaf)]
        assert spec["secretName"] == secret_name("demo", leaf)
        assert spec.get("dnsNames", []) == names
        assert spec["issuerRef"] == {"name": "ca", "kind": "ClusterIssuer", "group": "cert-manager.io"}
        assert ("server auth" in spec["usages"]) == bool(names)
        assert "client auth" in spec["usages"]
    assert not [each for each in desired(make_cluster(tls=TLS)) if each["kind"] == "Certificate"]
