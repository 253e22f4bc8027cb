"""The hosts around a cluster, and which of them may connect to which port of which other."""

from __future__ import annotations

from agentserving_operator.manifests import Component
from agentserving_operator.manifests.common import CLIENT_LABEL, labels
from support.network_policies import Host

OPERATOR_NAMESPACE = "agentserving-system"
_OPERATOR = {"app.kubernetes.io/name": "agentserving-operator"}


def _part(component: Component, number: int) -> Host:
    return Host(
        name=component.value, address=f"10.99.{number}.2", namespace="ns", labels=labels("demo", component)
    )  # fmt: skip


_ALL = (
    _part(Component.ENGINE, 1),
    _part(Component.CONTROL_PLANE, 2),
    _part(Component.GATEWAY, 3),
    _part(Component.ETCD, 4),
    Host(name="stranger", address="10.99.5.2", namespace="ns", labels={"app": "x"}),
    Host(name="client", address="10.99.6.2", namespace="ns", labels={CLIENT_LABEL: "true"}),
    Host(name="operator", address="10.99.7.2", namespace=OPERATOR_NAMESPACE, labels=_OPERATOR),
    # A pod of another tenant that gives itself whatever labels it likes.
    Host(
        name="impostor", address="10.99.8.2", namespace="other",
        labels={**labels("demo", Component.CONTROL_PLANE), **_OPERATOR, CLIENT_LABEL: "true"},
    ),
    Host(name="prometheus", address="10.99.9.2", namespace="monitoring", labels={"app": "prometheus"}),
    Host(name="other cluster", address="10.99.10.2", namespace="ns", labels=labels("other", Component.GATEWAY)),
    Host(name="internet", address="198.51.100.2"),
    # Where clouds serve credentials to whoever asks.
    Host(name="metadata", address="169.254.169.254"),
)  # fmt: skip
HOSTS = {each.name: each for each in _ALL}

CONNECTIONS = [
    ("gateway", "engine", 8000),
    ("gateway", "control-plane", 7070),
    ("engine", "control-plane", 7070),
    ("gateway", "control-plane", 7076),
    ("engine", "control-plane", 7076),
    ("operator", "control-plane", 7070),
    ("control-plane", "etcd", 2379),
    ("client", "control-plane", 7070),
    ("client", "engine", 8000),
    ("client", "engine", 7071),
    ("stranger", "gateway", 8080),
    ("impostor", "gateway", 8080),
    ("prometheus", "engine", 7072),
    ("prometheus", "control-plane", 7080),
    ("prometheus", "gateway", 8081),
    ("prometheus", "etcd", 2381),
    ("engine", "internet", 443),
    # DNS by TCP, which every part may need.
    ("engine", "internet", 53),
    ("gateway", "internet", 53),
    # Nothing that is ours forbids others anything.
    ("stranger", "internet", 80),
]
REFUSED = [
    *(
        ("impostor", target, port)
        for target, port in [
            ("control-plane", 7070), ("control-plane", 7076), ("engine", 8000), ("engine", 7071), ("engine", 7072),
            ("etcd", 2379), ("etcd", 2380), ("etcd", 2381), ("gateway", 8081),
        ]
    ),
    *(
        ("stranger", target, port)
        for target, port in [
            ("control-plane", 7070), ("control-plane", 7076), ("control-plane", 7080), ("engine", 8000),
            ("engine", 7072), ("etcd", 2379), ("etcd", 2381),
        ]
    ),
    ("client", "etcd", 2379),
    ("client", "etcd", 2381),
    ("client", "control-plane", 7076),
    ("operator", "control-plane", 7076),
    ("prometheus", "control-plane", 7076),
    ("other cluster", "control-plane", 7076),
    ("client", "engine", 7072),
    ("operator", "engine", 8000),
    ("operator", "etcd", 2379),
    ("prometheus", "engine", 8000),
    ("prometheus", "control-plane", 7070),
    ("other cluster", "engine", 8000),
    ("gateway", "etcd", 2379),
    ("engine", "etcd", 2379),
    ("engine", "gateway", 8080),
    ("engine", "internet", 80),
    ("engine", "metadata", 443),
    ("engine", "metadata", 80),
    ("engine", "stranger", 443),
    ("gateway", "internet", 443),
    ("control-plane", "internet", 443),
    ("control-plane", "engine", 8000),
    ("etcd", "control-plane", 7070),
    ("etcd", "internet", 443),
]  # fmt: skip
