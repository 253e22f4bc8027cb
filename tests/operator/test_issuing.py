"""A visit issues certificates, renews them when they are due, and tells what keeps it from doing so."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable
from typing import Any

import pytest
from agentserving.transport.connection import Pem
from agentserving_operator.api_server import RefusedError, UnavailableError
from agentserving_operator.certificates.renewal import ANNOUNCED_FOR, CA_LIFE
from agentserving_operator.certificates.values import LEAF_LIFE
from agentserving_operator.manifests.etcd_statefulset import TRUST_ANNOTATION
from agentserving_operator.observe.status import Overview
from agentserving_operator.reconcile import Outcome, World, reconcile
from agentserving_operator.spec.crd import KIND
from agentserving_operator.spec.scheduling import Scheduling
from support.memory_api import MemoryApi
from support.operator_objects import IMAGES

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
SPEC: dict[str, Any] = {"model": {"name": "tiny"}, "engine": {"type": "Simulator"}, "tls": {"issuer": "Operator"}}
CERT_MANAGER: dict[str, Any] = {**SPEC, "tls": {"issuer": "CertManager", "issuerRef": {"name": "ca"}}}
LEAVES = ("demo-control-plane-tls", "demo-etcd-tls", "demo-engine-tls", "demo-client-tls")


class Clock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")


class Plane:
    """Remembers who asked."""

    def __init__(self) -> None:
        self.asked: list[Pem | None] = []

    async def __call__(self, _: str, scheduling: Scheduling, generation: int, tls: Pem | None) -> Overview | None:
        self.asked.append(tls)
        return Overview(
            programs=1, policy_name=scheduling.policy.value, policy_version=2, policy_generation=generation,
            pending_engines=0, store_healthy=True, store_message="",
        )  # fmt: skip


class Visited:
    """A cluster, visited by hand."""

    def __init__(self, spec: dict[str, Any] = SPEC) -> None:
        self.api, self.clock, self.plane = MemoryApi(), Clock(), Plane()
        self.api.put_cluster("ns", "demo", spec)
        self.world = World(
            api=self.api, settle=self.plane, images=IMAGES, now=self.clock, random_bytes=lambda n: b"r" * n
        )  # fmt: skip

    async def visit(self, **later: Any) -> Outcome:
        self.clock.now += datetime.timedelta(**later)
        return await reconcile(self.world, "ns", "demo")

    def data(self, name: str) -> dict[str, bytes]:
        found = self.api.objects["Secret", "ns", name]["data"]
        return {key: base64.b64decode(each) for key, each in found.items()}

    def certificates(self) -> dict[str, dict[str, bytes]]:
        return {name: self.data(name) for name in ("demo-ca", *LEAVES)}

    def ready(self) -> tuple[str, str]:
        (found,) = [
            each for each in self.api.objects[KIND, "ns", "demo"]["status"]["conditions"] if each["type"] == "Ready"
        ]
        return found["reason"], found["message"]

    def serve(self) -> None:
        self.api.objects["Deployment", "ns", "demo-control-plane"]["status"] = {"readyReplicas": 1, "replicas": 1}


async def test_certificates_are_there_after_the_first_visit_and_the_second_writes_nothing() -> None:
    visited = Visited()
    assert await visited.visit() is Outcome.SETTLED
    for name in LEAVES:
        assert visited.data(name)["ca.crt"] == visited.data("demo-ca")["ca.crt"]
        assert visited.api.objects["Secret", "ns", name]["type"] == "kubernetes.io/tls"
    written = len(visited.api.writes)
    assert await visited.visit(days=1) is Outcome.SETTLED
    assert len(visited.api.writes) == written


async def test_without_tls_no_secret_but_the_ticket_key_is_made() -> None:
    visited = Visited({**SPEC, "tls": {}})
    await visited.visit()
    assert [name for kind, _, name in visited.api.objects if kind == "Secret"] == ["demo-ticket-key"]


async def test_leaves_are_renewed_in_time_and_nothing_restarts() -> None:
    visited = Visited()
    await visited.visit()
    before, written = visited.certificates(), len(visited.api.writes)
    await visited.visit(seconds=LEAF_LIFE.total_seconds() * 2 / 3)
    after = visited.certificates()
    assert after["demo-ca"] == before["demo-ca"]
    assert all(after[name]["tls.crt"] != before[name]["tls.crt"] for name in LEAVES)
    assert sorted(visited.api.writes[written:]) == sorted(f"apply Secret {name}" for name in LEAVES)


async def test_a_new_ca_is_announced_to_all_then_signs_and_etcd_is_restarted_once() -> None:
    visited = Visited()
    await visited.visit()
    await visited.visit(seconds=CA_LIFE.total_seconds() * 2 / 3 - 86400)
    before, written = visited.certificates(), len(visited.api.writes)
    await visited.visit(days=1)
    announced = visited.certificates()
    assert all(announced[name]["tls.crt"] == before[name]["tls.crt"] for name in LEAVES)
    assert all(len(each["ca.crt"]) > len(before["demo-ca"]["ca.crt"]) for each in announced.values())
    assert "apply StatefulSet demo-etcd" in visited.api.writes[written:]
    written = len(visited.api.writes)
    await visited.visit(seconds=ANNOUNCED_FOR.total_seconds())
    signed = visited.certificates()
    assert all(signed[name]["tls.crt"] != announced[name]["tls.crt"] for name in LEAVES)
    assert all(signed[name]["ca.crt"] == announced[name]["ca.crt"] for name in LEAVES)
    assert "apply StatefulSet demo-etcd" not in visited.api.writes[written:]


async def test_etcd_is_told_from_the_first_whom_it_trusts_so_that_it_starts_once() -> None:
    visited = Visited()
    await visited.visit()
    template = visited.api.objects["StatefulSet", "ns", "demo-etcd"]["spec"]["template"]
    assert template["metadata"]["annotations"][TRUST_ANNOTATION]


@pytest.mark.parametrize("name", ["demo-ca", *LEAVES])
async def test_a_secret_that_was_deleted_or_spoilt_is_made_good(name: str) -> None:
    visited = Visited()
    for spoil in (
        lambda: visited.api.objects.pop(("Secret", "ns", name)),
        lambda: visited.api.objects["Secret", "ns", name]["data"].update({"tls.key": "bm9uZQ=="}),
        lambda: visited.api.objects["Secret", "ns", name]["data"].update({"ca.crt": "bm9uZQ=="}),
    ):
        await visited.visit()
        spoil()
        await visited.visit()
        assert all(visited.data(leaf)["ca.crt"] == visited.data("demo-ca")["ca.crt"] for leaf in LEAVES)
        written = len(visited.api.writes)
        await visited.visit()
        assert len(visited.api.writes) == written


async def test_a_secret_that_is_somebody_elses_is_told_and_left_alone() -> None:
    visited = Visited()
    theirs = {"kind": "Secret", "metadata": {"name": "demo-etcd-tls", "namespace": "ns"}, "data": {}}
    visited.api._store(theirs)
    assert await visited.visit() is Outcome.REFUSED
    assert visited.ready()[0] == "NameTaken"
    assert "Secret demo-etcd-tls is there and does not belong to this cluster" in visited.ready()[1]
    assert visited.api.objects["Secret", "ns", "demo-etcd-tls"]["data"] == {}


async def test_nothing_is_signed_by_a_ca_that_could_not_be_kept() -> None:
    visited = Visited()
    visited.api.refuse["demo-ca"] = RefusedError(403, "Forbidden", "no")
    assert await visited.visit() is Outcome.REFUSED
    assert visited.ready() == ("ApplyRefused", "Secret demo-ca: no")
    assert [name for kind, _, name in visited.api.objects if kind == "Secret"] == ["demo-ticket-key"]


async def test_a_visit_that_breaks_off_at_any_write_is_made_good_by_the_next() -> None:
    clean = Visited()
    await clean.visit()
    for number in range(len(clean.api.writes)):
        visited = Visited()
        visited.api.fail_at = number
        with pytest.raises(UnavailableError):
            await visited.visit()
        visited.api.fail_at = None
        await visited.visit()
        assert all(visited.data(leaf)["ca.crt"] == visited.data("demo-ca")["ca.crt"] for leaf in LEAVES)
        assert visited.api.state().keys() == clean.api.state().keys()


async def test_the_operator_shows_the_clients_certificate_and_asks_for_the_services_name() -> None:
    visited = Visited()
    await visited.visit()
    visited.serve()
    await visited.visit()
    data = visited.data("demo-client-tls")
    assert visited.plane.asked == [
        Pem(data["ca.crt"], data["tls.crt"], data["tls.key"], "demo-control-plane.ns.svc")
    ]  # fmt: skip


async def test_cert_managers_secrets_are_waited_for_and_only_read() -> None:
    visited = Visited(CERT_MANAGER)
    assert await visited.visit() is Outcome.SETTLED
    assert {name for kind, _, name in visited.api.objects if kind == "Certificate"} == set(LEAVES)
    assert [name for kind, _, name in visited.api.objects if kind == "Secret"] == ["demo-ticket-key"]
    visited.serve()
    await visited.visit()
    assert visited.plane.asked == []
    issued = Visited()
    await issued.visit()
    for name in LEAVES:
        secret = issued.api.objects["Secret", "ns", name]
        visited.api._store({**secret, "metadata": {"name": name, "namespace": "ns"}})
    written = len(visited.api.writes)
    await visited.visit()
    assert visited.plane.asked[0] is not None
    assert not [each for each in visited.api.writes[written:] if "Secret" in each]


async def test_a_cluster_without_cert_manager_is_told_what_to_do() -> None:
    visited = Visited(CERT_MANAGER)
    apply: Callable[..., Any] = visited.api.apply

    async def without(manifest: Any) -> Any:
        if manifest["kind"] == "Certificate":
            raise RefusedError(404, "", "404 page not found\n")
        return await apply(manifest)

    visited.api.apply = without  # type: ignore[method-assign]
    assert await visited.visit() is Outcome.REFUSED
    assert visited.ready()[0] == "CertManagerMissing"
    assert "install it, or use" in visited.ready()[1]
    assert ("Deployment", "ns", "demo-gateway") in visited.api.objects
