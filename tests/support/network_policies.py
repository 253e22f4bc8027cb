"""NetworkPolicies as a network plug-in reads them: an evaluator, and the same as nftables rules for real packets.

Only what our manifests use: matchLabels, the operator In, ipBlock, single ports.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Policy = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A pod; without a namespace, a machine outside the Kubernetes cluster. `address`: IPv4."""

    name: str
    address: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


def _selects(chosen: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """An empty selector selects everything."""
    unknown = set(chosen) - {"matchLabels", "matchExpressions"}
    assert not unknown, unknown
    if not chosen.get("matchLabels", {}).items() <= labels.items():
        return False
    for each in chosen.get("matchExpressions", []):
        assert each["operator"] == "In", each
        if labels.get(each["key"]) not in each["values"]:
            return False
    return True


def is_peer(peer: Mapping[str, Any], host: Host, namespace: str) -> bool:
    """Whether a peer of a policy in that namespace is this host."""
    if "ipBlock" in peer:
        block, address = peer["ipBlock"], ipaddress.ip_address(host.address)
        inside = address in ipaddress.ip_network(block["cidr"])
        return inside and not any(address in ipaddress.ip_network(each) for each in block.get("except", []))
    if not host.namespace:
        return False
    if "namespaceSelector" in peer:
        # The API server gives every namespace this label, and nothing else.
        if not _selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": host.namespace}):
            return False
    elif host.namespace != namespace:
        return False
    return _selects(peer.get("podSelector", {}), host.labels)


def _of(policies: Iterable[Policy], pod: Host, direction: str) -> list[Policy]:
    """The policies that isolate a pod in a direction."""
    return [
        each
        for each in policies
        if pod.namespace == each["metadata"]["namespace"]
        and direction in each["spec"]["policyTypes"]
        and _selects(each["spec"]["podSelector"], pod.labels)
    ]


def _rules(policies: Iterable[Policy], direction: str) -> Iterator[tuple[Policy, list[int], list[Any] | None]]:
    """(policy, TCP ports, peers) of each rule; peers None = every host."""
    key, side = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    for policy in policies:
        for rule in policy["spec"].get(key, []):
            yield policy, [each["port"] for each in rule["ports"] if each["protocol"] == "TCP"], rule.get(side)


def _permits(policies: Sequence[Policy], direction: str, pod: Host, other: Host, port: int) -> bool:
    isolating = _of(policies, pod, direction)
    if not isolating:
        return True
    for policy, ports, peers in _rules(isolating, direction):
        namespace = policy["metadata"]["namespace"]
        if port in ports and (peers is None or any(is_peer(each, other, namespace) for each in peers)):
            return True
    return False


def allows(policies: Sequence[Policy], source: Host, target: Host, port: int) -> bool:
    """Whether a TCP connection is allowed: by the source's egress and by the target's ingress."""
    return _permits(policies, "Egress", source, target, port) and _permits(policies, "Ingress", target, source, port)


def nft_script(policies: Sequence[Policy], hosts: Sequence[Host]) -> str:
    """nftables rules of a router between all hosts, as a network plug-in would write them."""
    chains, jumps = [], ["ct state established,related accept"]
    for number, pod in enumerate(hosts):
        for direction, own, other in (("Egress", "saddr", "daddr"), ("Ingress", "daddr", "saddr")):
            isolating = _of(policies, pod, direction)
            if not isolating:
                continue
            chain = f"{direction.lower()}_{number}"
            jumps.append(f"ip {own} {pod.address} jump {chain}")
            lines = [
                f"{match}tcp dport {{ {', '.join(map(str, ports))} }} return"
                for policy, ports, peers in _rules(isolating, direction)
                for match in _matches(peers, other, hosts, policy["metadata"]["namespace"])
            ]
            # Refused, not dropped, so that a test need not wait.
            chains.append((chain, [*lines, "reject with tcp reset"]))
    body = [f"chain {name} {{\n  " + "\n  ".join(lines) + "\n}" for name, lines in chains]
    forward = "chain forward {\n  type filter hook forward priority 0; policy accept;\n  " + "\n  ".join(jumps) + "\n}"
    return "table ip policies {\n" + "\n".join([*body, forward]) + "\n}\n"


def _matches(peers: list[Any] | None, side: str, hosts: Sequence[Host], namespace: str) -> Iterator[str]:
    """The beginnings of nftables rules for a rule's peers."""
    if peers is None:
        yield ""
        return
    for peer in peers:
        if "ipBlock" in peer:
            block = peer["ipBlock"]
            if ":" in block["cidr"]:
                continue
            left_out = ", ".join(block.get("except", []))
            yield f"ip {side} {block['cidr']} " + (f"ip {side} != {{ {left_out} }} " if left_out else "")
        elif addresses := [host.address for host in hosts if is_peer(peer, host, namespace)]:
            yield f"ip {side} {{ {', '.join(addresses)} }} "
