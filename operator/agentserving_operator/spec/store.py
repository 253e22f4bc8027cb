"""Where the process table is stored: `spec.store`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from agentserving_operator.spec.fields import (
    CANNOT_BE_CHANGED,
    DNS_SUBDOMAIN,
    Rule,
    choice,
    flag,
    integer,
    items,
    quantity,
    struct,
    text,
)
from agentserving_operator.spec.parts import Resources
from agentserving_operator.spec.pod_template import PodTemplate


class StoreType(StrEnum):
    """Where the control plane stores its process table."""

    ETCD = "Etcd"
    EXTERNAL = "ExternalEtcd"
    MEMORY = "Memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdStore:
    """An etcd that the operator runs."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule("self.members in [1, 3]", "members must be 1 or 3", lambda e: e.members in (1, 3), "members"),
    )

    members: int = integer("1 or 3. Immutable.", 1, 3, default=1)
    size: str = quantity("Size of a member's volume. Immutable.", default="10Gi")
    storage_class_name: str | None = text(
        "Absent: the default StorageClass. Immutable.", 253, default=None, pattern=DNS_SUBDOMAIN
    )
    quota_mib: int = integer(
        "Size limit of etcd's database (--quota-backend-bytes), MiB.", 64, 8_192, default=2_048, wire="quotaMiB"
    )
    resources: Resources = struct("Requests and limits of a member.", default=Resources)
    template: PodTemplate | None = struct("More about members' pods; the container is etcd.", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalEtcd:
    """An etcd that you run."""

    endpoints: tuple[str, ...] = items(
        "host:port of each member.", 9, list_type="set", default=(), min_length=3, max_length=261,
        pattern=r"^[^\s/:]+:[0-9]{1,5}$",
    )  # fmt: skip
    prefix: str | None = text(
        "Prefix of this cluster's keys; absent: /agentserving/<namespace>/<name>.", 253, default=None,
        pattern=r"^/[-a-zA-Z0-9_./]+$",
    )  # fmt: skip
    tls_secret_name: str | None = text(
        "Secret with ca.crt and, if etcd requires client certificates, tls.crt and tls.key; absent: no TLS.",
        253,
        default=None,
        pattern=DNS_SUBDOMAIN,
    )
    client_certificate: bool = flag("Whether the Secret has tls.crt and tls.key.", default=True)

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "size(self.endpoints) > 0", "at least one endpoint is required", lambda e: len(e.endpoints) > 0, "endpoints"
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where the process table is stored."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.type == 'ExternalEtcd') == has(self.external)",
            "external is needed with type ExternalEtcd, and with no other",
            lambda s: (s.type is StoreType.EXTERNAL) == (s.external is not None),
            "external",
        ),
        Rule(
            "!has(self.etcd) || self.type == 'Etcd'",
            "etcd goes with type Etcd only",
            lambda s: s.etcd is None or s.type is StoreType.ETCD,
            "etcd",
        ),
        # Rules of EtcdStore itself are not evaluated when `etcd` appears or disappears.
        *(
            Rule(
                f"(has(self.etcd) ? {value.format('self')} : {default}) == "
                f"(has(oldSelf.etcd) ? {value.format('oldSelf')} : {default})",
                f"etcd.{name} {CANNOT_BE_CHANGED}",
                at="etcd",
            )
            for name, value, default in (
                ("members", "{0}.etcd.members", "1"),
                ("size", "string({0}.etcd.size)", "'10Gi'"),
                (
                    "storageClassName",
                    "(has({0}.etcd.storageClassName) ? {0}.etcd.storageClassName : '')",
                    "''",
                ),
            )
        ),
    )

    type: StoreType = choice(
        "Etcd, ExternalEtcd, or Memory, which is lost when the control plane restarts. Immutable.",
        default=StoreType.ETCD,
        immutable=True,
    )
    etcd: EtcdStore | None = struct("Settings of type Etcd.", default=None)
    external: ExternalEtcd | None = struct("Settings of type ExternalEtcd.", default=None)
