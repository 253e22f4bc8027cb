"""Who issues the certificates with which a cluster's parts know each other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from agentserving_operator.spec.fields import Rule, choice, struct, text


class Issuer(StrEnum):
    """Who issues."""

    NONE = "None"
    OPERATOR = "Operator"
    CERT_MANAGER = "CertManager"


class IssuerKind(StrEnum):
    """cert-manager's own."""

    ISSUER = "Issuer"
    CLUSTER_ISSUER = "ClusterIssuer"


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerReference:
    """An issuer of cert-manager."""

    name: str = text("Its name.", 253, min_length=1, pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    kind: IssuerKind = choice("Issuer, in this namespace, or ClusterIssuer.", default=IssuerKind.ISSUER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS with certificates on both sides between control planes, gateways, sidecars and an etcd of ours."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.issuer == 'CertManager') == has(self.issuerRef)",
            "issuerRef is needed with issuer CertManager, and with no other",
            lambda t: (t.issuer is Issuer.CERT_MANAGER) == (t.issuer_ref is not None),
            "issuerRef",
        ),
    )

    # An etcd of several members cannot go from one to the other in place: old and new ones would not understand
    # each other, and none of them had a majority.
    issuer: Issuer = choice(
        "None: in the clear, behind NetworkPolicies. Operator: a CA for this cluster, certificates of 90 days, "
        "renewed. CertManager: an issuer of yours that puts its CA beside each certificate. Immutable.",
        default=Issuer.NONE,
        immutable=True,
    )
    issuer_ref: IssuerReference | None = struct("The issuer of CertManager.", default=None)

    @property
    def on(self) -> bool:
        """True when there is any TLS."""
        return self.issuer is not Issuer.NONE
