"""With TLS, every component gets valid flags that name its certificates; without, no object mentions TLS."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from agentserving.contract.identity import Identity
from agentserving.contract.names import ENGINES_NAME, engine_name
from agentserving_controlplane.settings import parse
from agentserving_gateway.__main__ import Settings as GatewaySettings
from agentserving_gateway.front import Settings as FrontSettings
from agentserving_operator.certificates.renewal import renewed
from agentserving_operator.engine_identity import SERVED
from agentserving_operator.manifests import AgentServingCluster, Manifest, desired
from agentserving_operator.manifests.certificate_objects import (
    all_leaves,
    authority_of,
    engine_leaves,
    leaves,
    pair_of,
    secrets,
)
from agentserving_operator.manifests.common import Port
from agentserving_operator.manifests.control_plane_deployment import control_plane_deployment
from agentserving_operator.manifests.engine_pod import KEY_FILE
from agentserving_operator.manifests.engine_statefulset import engine_statefulset
from agentserving_operator.manifests.etcd_statefulset import etcd_endpoints, etcd_statefulset
from agentserving_operator.manifests.gateway_deployment import gateway_deployment
from agentserving_operator.manifests.tls import Leaf, etcd_client_name, secret_name
from agentserving_process import options
from agentserving_sidecar.settings import Settings as SidecarSettings
from support.certificate_files import now
from support.operator_objects import make_cluster, only_container, pod_spec, value_after

TLS: dict[str, Any] = {"issuer": "Operator"}
BY_CERT_MANAGER: dict[str, Any] = {"issuer": "CertManager", "issuerRef": {"name": "ca", "kind": "ClusterIssuer"}}


def mounted(workload: Manifest, path: str, container: Manifest | None = None) -> str:
    """Name of the Secret that a file comes from."""
    one = container or only_container(workload)
    (mount,) = [each for each in one["volumeMounts"] if path.startswith(f"{each['mountPath']}/")]
    assert "readOnly" in mount
    assert "subPath" not in mount
    (volume,) = [each for each in pod_spec(workload)["volumes"] if each["name"] == mount["name"]]
    if volume["name"] == "engine-tls":
        # The pod's own certificate, copied from those of all engines.
        return "demo-engine-identities" if "emptyDir" in volume else "?"
    return str(volume["secret"]["secretName"])


def test_a_control_plane_uses_its_own_certificate_as_server_and_for_etcd(tmp_path: Path) -> None:
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
        assert mounted(made, path) == "demo-control-plane-tls"


def test_an_external_etcd_has_the_users_certificates(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    external = {"endpoints": ["a:1"], "tlsSecretName": "theirs"}
    made = control_plane_deployment(make_cluster(tls=TLS, store={"type": "ExternalEtcd", "external": external}))
    found = parse([str(tmp_path / "key") if each == KEY_FILE else each for each in only_container(made)["args"]])
    assert mounted(made, found.store.etcd_tls_ca) == "theirs"
    assert mounted(made, found.tls.tls_ca) == "demo-control-plane-tls"
    assert etcd_client_name(make_cluster(tls=TLS)) not in leaves(
        make_cluster(tls=TLS, store={"type": "ExternalEtcd", "external": external})
    )[Leaf.CONTROL_PLANE]  # fmt: skip


def test_gateways_and_sidecars_verify_a_name_that_control_planes_have() -> None:
    cluster = make_cluster(tls=TLS, auth={"clients": "None"})
    front, engine = gateway_deployment(cluster), engine_statefulset(cluster)
    _, sidecar = pod_spec(engine)["initContainers"]
    for workload, container, settings, secret in (
        (front, pod_spec(front)["containers"][1], GatewaySettings, "demo-gateway-tls"),
        (engine, sidecar, SidecarSettings, "demo-engine-identities"),
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
    objects = json.dumps(desired(make_cluster(store=store, tls={"issuer": "None"})))
    assert "tls" not in objects
    assert "https" not in objects
    assert "tls" in json.dumps(desired(make_cluster(store=store)))


def test_only_our_own_etcd_has_a_certificate() -> None:
    assert set(leaves(make_cluster(tls=TLS, store={"type": "Memory"}))) == set(Leaf) - {Leaf.ETCD}
    assert set(leaves(make_cluster(tls=TLS))) == set(Leaf)


def test_the_client_certificate_has_no_names() -> None:
    """No one can impersonate a server with it."""
    assert leaves(make_cluster(tls=TLS))[Leaf.CLIENT] == []


def test_secrets_are_read_back_as_written() -> None:
    cluster = make_cluster(tls=TLS)
    made = renewed("demo", None, {}, all_leaves(cluster), now())
    ca, *rest, engines = secrets(cluster, made)
    assert authority_of(ca) == made.authority
    assert {each["metadata"]["name"] for each in rest} == {secret_name("demo", leaf) for leaf in Leaf}
    for leaf, each in zip(leaves(cluster), rest, strict=True):
        assert pair_of(each) == made.leaves[leaf.value]
        # A certificate comes with the trusted CAs, and never with the CA's key.
        assert set(each["data"]) == {"tls.crt", "tls.key", "ca.crt"}
    for engine_id in engine_leaves(cluster):
        assert pair_of(engines, engine_id) == made.leaves[f"engine/{engine_id}"]
    for nothing in (None, {}, {"data": {}}, {"data": {"tls.crt": "?", "tls.key": "?"}}):
        assert authority_of(nothing) is None


def test_each_part_has_a_certificate_of_its_own_whose_uri_is_its_role() -> None:
    cluster = make_cluster(tls=TLS, engine={"replicas": 2})
    roles = {
        name: [identity.caller() for each in names if (identity := Identity.of_uri(each)) is not None]
        for name, names in all_leaves(cluster).items()
    }
    said = {name: [str(caller) for caller in callers] for name, callers in roles.items()}
    assert said == {
        "control-plane": ["control-plane"], "gateway": ["gateway"], "operator": ["operator"], "admin": ["admin"],
        "client": [], "etcd": [],
        "engine/demo-engine-0": ["sidecar/demo-engine-0"], "engine/demo-engine-1": ["sidecar/demo-engine-1"],
    }  # fmt: skip
    for callers in roles.values():
        assert all(caller.credential.startswith("spiffe://agentserving/ns/demo/") for caller in callers)


def test_only_the_container_without_a_port_sees_all_engines_certificates() -> None:
    spec = pod_spec(engine_statefulset(make_cluster(tls=TLS)))
    for one in [*spec["initContainers"], *spec["containers"]]:
        sees_all = "engine-identities" in [mount["name"] for mount in one["volumeMounts"]]
        assert sees_all == (one["name"] == "identity")
        assert not sees_all or (one["ports"] == [] and one["restartPolicy"] == "Always")
    assert "engine-tls" not in [mount["name"] for mount in spec["containers"][0]["volumeMounts"]]
    # kubelet starts init containers in this order.
    assert [one["name"] for one in spec["initContainers"]] == ["identity", "sidecar"]


def parsed(container: Manifest, settings: Any) -> Any:
    """A component's settings from its container's command line."""
    return options.parse(settings, prog="test", argv=container["args"], environment={})


def test_with_tls_to_engines_each_engine_has_a_name_of_its_own_and_callers_show_certificates() -> None:
    cluster = make_cluster(tls={"engines": True}, engine={"replicas": 2}, auth={"clients": "None"})
    for engine_id, names in engine_leaves(cluster).items():
        assert engine_name(engine_id) in names
        assert sum(name.endswith(ENGINES_NAME) for name in names) == 1
    front, engine = gateway_deployment(cluster), engine_statefulset(cluster)
    envoy, picker = pod_spec(front)["containers"]
    sidecar = pod_spec(engine)["initContainers"][1]
    for workload, container, given, secret in (
        (front, envoy, parsed(envoy, FrontSettings).tls, "demo-client-tls"),
        (front, picker, parsed(picker, GatewaySettings).tls, "demo-client-tls"),
        (engine, sidecar, parsed(sidecar, SidecarSettings).engine, "demo-engine-identities"),
    ):
        for path in (given.engine_ca, given.engine_cert, given.engine_key):
            assert mounted(workload, str(path), container) == secret
    # Envoy, which reads what strangers send, has no certificate with a role.
    assert Leaf.GATEWAY.value not in json.dumps([envoy["args"], envoy["volumeMounts"]])
    assert leaves(cluster)[Leaf.CLIENT] == []


@pytest.mark.parametrize("kind", ["VLLM", "Simulator"])
def test_an_engine_with_tls_asks_for_certificates_and_its_probes_need_none_of_kubelets(kind: str) -> None:
    workload = engine_statefulset(make_cluster(tls={"engines": True}, engine={"type": kind}))
    (one,) = pod_spec(workload)["containers"]
    arguments, prefix = one["args"], "--ssl" if kind == "VLLM" else "--tls"
    names = ("-ca-certs", "-certfile", "-keyfile") if kind == "VLLM" else ("-ca", "-cert", "-key")
    for name in names:
        path = value_after(arguments, f"{prefix}{name}")
        # Written in place.
        assert Path(path).parent.name == SERVED
        assert mounted(workload, path, one) == "demo-engine-identities"
    if kind == "VLLM":
        assert value_after(arguments, "--ssl-cert-reqs") == str(int(ssl.CERT_REQUIRED))
        assert "--enable-ssl-refresh" in arguments
    assert [port["name"] for port in one["ports"]] == ["https"]
    for probe in ("startupProbe", "livenessProbe"):
        assert "exec" in one[probe]
    assert one["readinessProbe"]["httpGet"] == {"port": Port.SIDECAR_HTTP, "path": "/readyz"}


def test_without_tls_to_engines_nothing_of_it_is_in_any_object() -> None:
    """Images may be older than the operator."""
    text = json.dumps(desired(make_cluster()))
    for word in ("--engine-", "--ssl-", "/served", ENGINES_NAME):
        assert word not in text.replace("--engine-id", "").replace("--engine-address", "")


def test_with_keys_clients_have_a_port_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    cluster = make_cluster(auth={"clients": "Keys"})
    arguments = only_container(control_plane_deployment(cluster))["args"]
    assert value_after(arguments, "--client-auth") == "keys"
    assert value_after(arguments, "--cluster") == "ns/demo"
    assert value_after(arguments, "--clients-listen") != value_after(arguments, "--listen")
    assert "demo-control-plane-clients.ns.svc" in leaves(cluster)[Leaf.CONTROL_PLANE]
    for one in pod_spec(gateway_deployment(cluster))["containers"]:
        assert value_after(one["args"], "--client-auth") == "keys"
    # Without keys no flag is given: images may be older than the operator.
    without = json.dumps(desired(make_cluster(auth={"clients": "None"})))
    assert not [flag for flag in ("--client-auth", "--unticketed", "--gateway-key-file") if flag in without]


def test_no_pod_has_the_cas_key() -> None:
    assert "demo-ca" not in json.dumps(desired(make_cluster(tls=TLS)))


def test_certificates_for_cert_manager_match_what_we_would_issue() -> None:
    cluster = make_cluster(tls=BY_CERT_MANAGER)
    asked = {each["metadata"]["name"]: each["spec"] for each in desired(cluster) if each["kind"] == "Certificate"}
    wanted = {secret_name("demo", leaf): names for leaf, names in leaves(cluster).items()}
    wanted |= {f"{engine_id}-tls": names for engine_id, names in engine_leaves(cluster).items()}
    assert set(asked) == set(wanted)
    for secret, every in wanted.items():
        spec, names = asked[secret], [name for name in every if "://" not in name]
        assert spec["secretName"] == secret
        assert spec.get("dnsNames", []) == names
        assert spec.get("uris", []) == [name for name in every if "://" in name]
        assert len(spec["commonName"]) <= 64
        assert spec["issuerRef"] == {"name": "ca", "kind": "ClusterIssuer", "group": "cert-manager.io"}
        assert ("server auth" in spec["usages"]) == bool(names)
        assert "client auth" in spec["usages"]
    assert not [each for each in desired(make_cluster(tls=TLS)) if each["kind"] == "Certificate"]
