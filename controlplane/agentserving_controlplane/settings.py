"""Settings of the control plane, by topic. Every option is a flag and an environment variable AGENTSERVING_<FLAG>."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import agentserving
from agentserving.contract import budgets
from agentserving.contract.budgets import UNLIMITED, Budget
from agentserving.contract.keys import KeyRow, decode_rows
from agentserving.contract.policy import DEFAULT, PRESETS
from agentserving.contract.service_class import SERVICE_WORDS, ServiceClass, read_service_class
from agentserving.contract.signatures import SigningKey
from agentserving.contract.ticket_keys import TicketKeys, signing_keys
from agentserving.transport.connection import Tls
from agentserving_process import listening, options
from agentserving_process.addresses import split_address
from agentserving_process.options import REQUIRED, option
from agentserving_process.probes import ProbeOptions
from agentserving_process.tls import TlsOptions
from agentserving_process.web_tokens.watch import TokenOptions

from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_controlplane.store.etcd.space import QUOTA_BYTES
from agentserving_controlplane.table.bounds import DEFAULT_CAPACITY, Capacity

# Keys of tickets, the signing one first; called for each ticket, since the file may be replaced.
Keys = Callable[[], Sequence[SigningKey]]


def read_keys(path: str) -> TicketKeys[SigningKey]:
    """The keys in a file. ValueError names the file and what is wrong with it."""
    try:
        return signing_keys(Path(path))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneSettings:
    """Scheduling and limits"""

    ticket_keys: Keys = option(
        REQUIRED, "file of the secret that signs tickets", name="ticket_key_file",
        read=read_keys,
    )  # fmt: skip
    policy: str = option(DEFAULT.name, "policy until one is applied", choices=sorted(PRESETS))
    balancer: Balancer = option(Balancer.PREFIX_AWARE, "how an engine is chosen until a policy says so")
    service_class: ServiceClass = option(
        ServiceClass.STANDARD,
        f"class of service of programs that get none from a client, key or tenant: {', '.join(SERVICE_WORDS)}",
        read=read_service_class,
    )
    program_idle_s: float = option(
        600.0, "seconds without a call after which a program is abandoned; six times that during a tool wait", above=0
    )
    default_budget: Budget = option(
        UNLIMITED,
        "budget of a program that has none of its own: tokens=200k,engine-seconds=300,calls=50; none: no limits",
        read=budgets.parse,
    )
    # Engines report each call several times a minute.
    call_idle_s: float = option(120.0, "seconds without a report after which a call is lost", above=0)
    closed_retention_s: float = option(600.0, "seconds that a closed program can be read", above=0)
    # A row has about a kilobyte.
    max_pending_writes: int = option(
        50_000, "rows that may wait for the store before new programs and calls are refused", above=0
    )
    # A live program takes 2.4 kB of memory (docs/scale.md).
    max_programs: int = option(DEFAULT_CAPACITY.programs, "live programs of all tenants", above=0)
    max_closed_programs: int = option(
        DEFAULT_CAPACITY.closed_programs, "closed programs that are retained; beyond, the oldest are forgotten", above=0
    )
    max_tenant_programs: int = option(
        DEFAULT_CAPACITY.tenant_programs,
        "live programs of any one tenant; a tenant may have a smaller bound of its own",
        above=0,
    )
    default_tenant_programs: int = option(
        10_000,
        "live programs of a tenant without a bound of its own (agentserving tenant set), where clients have keys",
        above=0,
    )
    default_tenant_calls: int = option(
        10_000, "calls in flight of a tenant without a bound of its own, where clients have keys", above=0
    )
    # Engines get all of them in one message of at most 8 MiB; one takes 260 bytes at most.
    max_paused_programs: int = option(
        DEFAULT_CAPACITY.paused_programs,
        "paused programs of all tenants; a fifth of them for any one",
        above=0,
        most=30_000,
    )

    def capacity(self, *, keys: bool) -> Capacity:
        """Bounds of the process table. Without keys a tenant is a claim, and bounds of tenants hold nobody back."""
        return Capacity(
            programs=self.max_programs,
            closed_programs=self.max_closed_programs,
            paused_programs=self.max_paused_programs,
            tenant_programs=self.max_tenant_programs,
            tenant_paused_programs=max(1, self.max_paused_programs // 5),
            default_tenant_programs=self.default_tenant_programs if keys else self.max_tenant_programs,
            default_tenant_calls=self.default_tenant_calls if keys else 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Serving RPCs"""

    listen: str = option("127.0.0.1:7070", "host:port of the gRPC server")
    advertise: str = option(
        "", "host:port where clients reach this process, given to them by followers; default: from --listen"
    )

    streams_listen: str = option(
        "", "host:port where gateways and sidecars keep their streams, at less cost than over gRPC; port 0 = any;"
        " default: they use --listen"
    )  # fmt: skip

    clients_listen: str = option(
        "", "host:port for clients with keys, without a certificate of theirs; default: clients use --listen as well"
    )
    clients_advertise: str = option("", "host:port where clients reach that port; default: from --clients-listen")

    def __post_init__(self) -> None:
        split_address(self.listen)
        if self.streams_listen:
            split_address(self.streams_listen)
        if self.clients_listen:
            split_address(self.clients_listen)

    @property
    def clients_address(self) -> str:
        """Where clients reach this process; empty when they use the port of the parts."""
        return self.clients_advertise or (listening.reachable(self.clients_listen) if self.clients_listen else "")

    def streams_address(self, port: int) -> str:
        """Where gateways and sidecars reach the streams that are served on this port."""
        return f"{self.address.rpartition(':')[0]}:{port}"

    @property
    def address(self) -> str:
        """Where clients reach this process; also its name as a candidate for the lease."""
        return self.advertise or listening.reachable(self.listen)


class ClientAuth(enum.StrEnum):
    """Whether callers must say who they are."""

    KEYS = "keys"
    NONE = "none"


def read_key_rows(path: str) -> tuple[KeyRow, ...]:
    """The rows in a file of --bootstrap-keys. ValueError names the file and what is wrong with it."""
    try:
        return tuple(decode_rows(Path(path).read_bytes()))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessOptions:
    """Who may call"""

    client_auth: ClientAuth = option(
        ClientAuth.NONE,
        "keys: every caller needs a key or a certificate that names a role; none: everyone who reaches the port is"
        " let in, as any tenant",
    )
    bootstrap_keys: tuple[KeyRow, ...] = option(
        (), "JSON file of keys that are valid from the start (agentserving.contract.keys.encode_rows): tokens of parts",
        read=read_key_rows,
    )  # fmt: skip
    cluster: str = option(
        "", "<namespace>/<name> that the URIs of peers' certificates must have; none: any that the CA has signed"
    )
    engine_hosts: tuple[str, ...] = option(
        (), "IP ranges and names (*.engines.svc) where engines may be, besides the host that their sidecar is on"
    )

    @property
    def required(self) -> bool:
        """True when every caller needs a credential."""
        return self.client_auth is ClientAuth.KEYS


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Durable storage"""

    store: str = option("memory", "where programs are stored", choices=("memory", "etcd"))
    etcd_endpoints: tuple[str, ...] = option(("127.0.0.1:2379",), "host:port of etcd's members, separated by commas")
    etcd_prefix: str = option("/agentserving/default", "prefix of all keys", read=lambda text: text.rstrip("/"))
    etcd_tls_ca: str = option("", "PEM file of the CA of etcd's certificates; none: no TLS")
    etcd_tls_cert: str = option("", "PEM file of a client certificate for etcd")
    etcd_tls_key: str = option("", "PEM file of its private key")
    etcd_quota_bytes: int = option(
        QUOTA_BYTES, "quota of an etcd that does not say what it is (before 3.6): its --quota-backend-bytes", above=0
    )
    # etcd grants at least 2 s; failing over takes about a lease.
    lease_s: int = option(5, "seconds without renewal after which another control plane takes over", least=2, most=600)

    def __post_init__(self) -> None:
        if self.store == "etcd" and not self.etcd_endpoints:
            raise ValueError("--etcd-endpoints: at least one is needed")

    @property
    def etcd_tls(self) -> Tls | None:
        """Certificates for etcd; None = in the clear."""
        return Tls.of(self.etcd_tls_ca, self.etcd_tls_cert, self.etcd_tls_key) if self.etcd_tls_ca else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryOptions:
    """OpenTelemetry"""

    otlp_endpoint: str = option(
        "",
        "URL of a collector's OTLP/HTTP receiver of traces: http://collector:4318/v1/traces; none: no spans",
    )
    otlp_headers: tuple[str, ...] = option((), "name=value of headers for the collector, separated by commas")
    otlp_service_name: str = option("agentserving", "service.name of the spans")

    def __post_init__(self) -> None:
        if self.otlp_endpoint and urlsplit(self.otlp_endpoint).scheme not in ("http", "https"):
            raise ValueError(f"--otlp-endpoint: {self.otlp_endpoint!r} is no http or https URL")
        if any(not name or not found for name, found, _ in (each.partition("=") for each in self.otlp_headers)):
            raise ValueError("--otlp-headers: name=value, separated by commas")

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of a request to the collector, by name."""
        return {name.strip(): value.strip() for name, _, value in (each.partition("=") for each in self.otlp_headers)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of the process, by topic."""

    plane: PlaneSettings
    serving: Serving = field(default_factory=Serving)
    access: AccessOptions = field(default_factory=AccessOptions)
    store: StoreOptions = field(default_factory=StoreOptions)
    tls: TlsOptions = field(default_factory=TlsOptions)
    probes: ProbeOptions = field(default_factory=ProbeOptions)
    tokens: TokenOptions = field(default_factory=TokenOptions)
    telemetry: TelemetryOptions = field(default_factory=TelemetryOptions)

    def __post_init__(self) -> None:
        if self.tokens.jwt_issuer and not self.access.required:
            raise ValueError("--jwt-issuer: --client-auth keys is needed with it: JWTs are accepted beside keys")


def parse(argv: Sequence[str] | None = None) -> Settings:
    """From flags and environment. Exits with status 2 and one line when they make no sense."""
    return options.parse(
        Settings,
        prog="agentserving-controlplane",
        description="The control plane of agentserving: programs, engines, admissions.",
        argv=sys.argv[1:] if argv is None else argv,
        version=agentserving.__version__,
    )
