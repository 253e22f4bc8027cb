"""Who issues the certificates by which a cluster's components authenticate each other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from agentserving_operator.spec.fields import DNS_SUBDOMAIN, Rule, choice, flag, struct, text


class Issuer(StrEnum):
    """Who issues the certificates."""

    NONE = "None"
    OPERATOR = "Operator"
    CERT_MANAGER = "CertManager"


class IssuerKind(StrEnum):
    """As in cert-manager."""

    ISSUER = "Issuer"
    CLUSTER_ISSUER = "ClusterIssuer"


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerReference:
    """An issuer of cert-manager."""

    name: str = text("Name of the issuer.", 253, min_length=1, pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    kind: IssuerKind = choice("Issuer, in this namespace, or ClusterIssuer.", default=IssuerKind.ISSUER)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontTls:
    """TLS for the clients of gateways."""

    secret_name: str = text(
        "Secret of type kubernetes.io/tls with tls.crt and tls.key, such as cert-manager writes; a renewed one is used "
        "without a restart.",
        253,
        min_length=1,
        pattern=DNS_SUBDOMAIN,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Mutual TLS between control planes, gateways, sidecars, the etcd that the operator runs and, if asked, engines."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.issuer == 'CertManager') == has(self.issuerRef)",
            "issuerRef is needed with issuer CertManager, and with no other",
            lambda t: (t.issuer is Issuer.CERT_MANAGER) == (t.issuer_ref is not None),
            "issuerRef",
        ),
        Rule(
            "!self.engines || self.issuer != 'None'",
            "engines needs an issuer of their certificates",
            lambda t: not t.engines or t.on,
            "engines",
        ),
    )

    # Immutable, because an etcd of several members cannot change over in place: members with and without TLS cannot
    # talk to each other, so neither group would have a majority.
    issuer: Issuer = choice(
        "Operator: a CA for this cluster, and certificates of 90 days that are renewed. CertManager: your issuer, "
        "which must add its CA to each certificate's Secret. None: no TLS, only NetworkPolicies. Immutable. A cluster "
        "that was created when None was the default has it in its spec, and stays without TLS.",
        default=Issuer.OPERATOR,
        immutable=True,
    )
    # Immutable, because a gateway and an engine of which only one has changed cannot talk to each other.
    engines: bool = flag(
        "Calls to engines are encrypted as well, and engines reject clients without a certificate of this cluster: "
        "only gateways, their own sidecars, and pods with the Secret <cluster>-client-tls. Immutable.",
        default=False,
        immutable=True,
    )
    issuer_ref: IssuerReference | None = struct("The issuer, with issuer CertManager.", default=None)

    @property
    def on(self) -> bool:
        """Whether the cluster uses TLS."""
        return self.issuer is not Issuer.NONE
