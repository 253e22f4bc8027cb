"""Ingress and HTTPRoute exist on demand and lead to the gateways' Service."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving_operator.errors import RefusedError
from agentserving_operator.manifests import AgentServingCluster, Manifest, desired
from agentserving_operator.manifests.services import gateway_service
from agentserving_operator.observe.owned import refused
from agentserving_operator.observe.reasons import Reason
from agentserving_operator.spec.parsing import SpecError
from support.operator_objects import make_cluster

HOSTS = ["llm.example.com", "*.agents.example.com"]
ROUTE = {"parentRefs": [{"name": "public", "namespace": "gateways", "sectionName": "https"}]}


def only(cluster: AgentServingCluster, kind: str) -> Manifest:
    (found,) = [each for each in desired(cluster) if each["kind"] == kind]
    return found


def test_nothing_is_rendered_unless_asked() -> None:
    assert not [each for each in desired(make_cluster()) if each["kind"] in ("Ingress", "HTTPRoute")]


@pytest.mark.parametrize("gateway", [{}, {"port": 8080}, {"tls": {"secretName": "front"}}])
def test_both_lead_to_the_port_of_the_gateways_service(gateway: dict[str, Any]) -> None:
    cluster = make_cluster(gateway={**gateway, "ingress": {}, "httpRoute": ROUTE})
    service = gateway_service(cluster)
    (rule,) = only(cluster, "Ingress")["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    (route,) = only(cluster, "HTTPRoute")["spec"]["rules"]
    (reference,) = route["backendRefs"]
    backend = path["backend"]["service"]
    assert backend["name"] == reference["name"] == service["metadata"]["name"]
    assert backend["port"]["number"] == reference["port"] == service["spec"]["ports"][0]["port"]


def test_an_ingress_has_a_rule_for_each_host_and_one_certificate() -> None:
    cluster = make_cluster(gateway={"ingress": {"className": "nginx", "hosts": HOSTS, "tlsSecretName": "front"}})
    spec = only(cluster, "Ingress")["spec"]
    assert spec["ingressClassName"] == "nginx"
    assert [each["host"] for each in spec["rules"]] == HOSTS
    assert spec["tls"] == [{"hosts": HOSTS, "secretName": "front"}]


def test_ingress_nginx_takes_bodies_as_long_and_streams_as_slow_as_agents_need_unless_told_otherwise() -> None:
    prefix = "nginx.ingress.kubernetes.io"
    mine = {f"{prefix}/proxy-read-timeout": "60", "cert-manager.io/cluster-issuer": "public"}
    gateway = {"maxBodyBytes": 4096, "tls": {"secretName": "front"}, "ingress": {"annotations": mine}}
    found = only(make_cluster(gateway=gateway), "Ingress")["metadata"]["annotations"]
    assert found[f"{prefix}/proxy-body-size"] == "4096"
    assert found[f"{prefix}/backend-protocol"] == "HTTPS"
    assert mine.items() <= found.items()
    plain = only(make_cluster(gateway={"ingress": {}}), "Ingress")["metadata"]["annotations"]
    assert f"{prefix}/backend-protocol" not in plain


def test_a_changed_annotation_is_noticed_as_any_other_field() -> None:
    def hashed(value: str) -> str:
        ingress = only(make_cluster(gateway={"ingress": {"annotations": {"a": value}}}), "Ingress")
        return str(ingress["metadata"]["annotations"]["agentserving.io/applied-hash"])

    assert hashed("1") != hashed("2")


def test_a_route_is_attached_to_its_gateways_and_matches_all_below_its_hosts() -> None:
    spec = only(make_cluster(gateway={"httpRoute": {**ROUTE, "hostnames": HOSTS}}), "HTTPRoute")["spec"]
    assert (spec["parentRefs"], spec["hostnames"]) == (ROUTE["parentRefs"], HOSTS)
    (rule,) = spec["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]
    assert "filters" not in rule


def test_clusters_share_a_host_by_path_or_by_the_model_in_a_header() -> None:
    ways = {**ROUTE, "pathPrefix": "/llama", "headers": {"X-Gateway-Model-Name": "llama-8b"}}
    (rule,) = only(make_cluster(gateway={"httpRoute": ways}), "HTTPRoute")["spec"]["rules"]
    (match,) = rule["matches"]
    assert match["path"]["value"] == "/llama"
    assert match["headers"] == [{"type": "Exact", "name": "X-Gateway-Model-Name", "value": "llama-8b"}]
    (rewrite,) = rule["filters"]
    assert rewrite["urlRewrite"]["path"] == {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}


@pytest.mark.parametrize(
    ("gateway", "field"),
    [
        ({"httpRoute": {"parentRefs": []}}, "spec.gateway.httpRoute.parentRefs"),
        ({"httpRoute": {**ROUTE, "pathPrefix": "/a/"}}, "spec.gateway.httpRoute.pathPrefix"),
        ({"ingress": {"tlsSecretName": "front"}}, "spec.gateway.ingress.tlsSecretName"),
        ({"ingress": {"hosts": ["a.*.example"]}}, "spec.gateway.ingress.hosts"),
    ],
)
def test_what_no_controller_could_serve_is_refused(gateway: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError, match=field):
        make_cluster(gateway=gateway)


def test_a_cluster_without_the_gateway_api_says_what_to_install() -> None:
    trouble = refused("HTTPRoute", "demo", RefusedError(404, "", "404 page not found"))
    assert trouble.reason is Reason.GATEWAY_API_MISSING
    assert "spec.gateway.ingress" in trouble.message
