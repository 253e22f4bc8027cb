"""A visit issues certificates, renews those that are due, and reports what prevents it."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable
from typing import Any

import pytest
from agentserving.transport.connection import Pem
from agentserving_operator.certificates.renewal import ANNOUNCED_FOR, CA_LIFE
from agentserving_operator.certificates.values import LEAF_LIFE
from agentserving_operator.control_planes import Target
from agentserving_operator.errors import RefusedError, UnavailableError
from agentserving_operator.manifests.etcd_statefulset import TRUST_ANNOTATION
from agentserving_operator.observe.overview import Overview
from agentserving_operator.reconcile import Reconciler, VisitResult
from agentserving_operator.spec.crd import KIND
from support.memory_api import MemoryApi
from support.operator_objects import IMAGES, no_scaling, no_tenants

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
SPEC: dict[str, Any] = {"model": {"name": "tiny"}, "engine": {"type": "Simulator"}, "tls": {"issuer": "Operator"}}
CERT_MANAGER: dict[str, Any] = {**SPEC, "tls": {"issuer": "CertManager", "issuerRef": {"name": "ca"}}}
LEAVES = (
    "demo-control-plane-tls", "demo-etcd-tls", "demo-gateway-tls", "demo-operator-tls", "demo-admin-tls",
    "demo-client-tls",
)  # fmt: skip
ENGINES = "demo-engine-identities"


class Clock:
    """Advances only by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")


class Plane:
    """A control plane that records the certificates of its callers."""

    def __init__(self) -> None:
        self.asked: list[Pem | None] = []

    async def __call__(self, target: Target) -> Overview | None:
        self.asked.append(target.tls)
        return Overview(
            programs=1, policy_name=target.scheduling.policy.value, policy_version=2,
            policy_generation=target.generation,
            pending_engines=0, store_healthy=True, store_message="",
        )  # fmt: skip


class Visited:
    """A cluster whose visits the test triggers."""

    def __init__(self, spec: dict[str, Any] = SPEC) -> None:
        self.api, self.clock, self.plane = MemoryApi(), Clock(), Plane()
        self.api.put_cluster("ns", "demo", spec)
        self.reconciler = Reconciler(
            api=self.api, apply_policy=self.plane, apply_tenants=no_tenants, images=IMAGES, now=self.clock,
            scaling=no_scaling(), random_bytes=lambda n: b"r" * n,
        )  # fmt: skip

    async def visit(self, **later: Any) -> VisitResult:
        self.clock.now += datetime.timedelta(**later)
        return await self.reconciler.visit("ns", "demo")

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


async def test_the_first_visit_issues_certificates_and_the_second_writes_nothing() -> None:
    visited = Visited()
    assert await visited.visit() is VisitResult.SETTLED
    for name in LEAVES:
        assert visited.data(name)["ca.crt"] == visited.data("demo-ca")["ca.crt"]
        assert visited.api.objects["Secret", "ns", name]["type"] == "kubernetes.io/tls"
    written = len(visited.api.writes)
    assert await visited.visit(days=1) is VisitResult.SETTLED
    assert len(visited.api.writes) == written


async def test_without_tls_the_ticket_key_is_the_only_secret() -> None:
    visited = Visited({**SPEC, "tls": {"issuer": "None"}})
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
    assert sorted(visited.api.writes[written:]) == sorted(f"apply Secret {name}" for name in (*LEAVES, ENGINES))
    assert set(visited.data(ENGINES)) == {"ca.crt", "demo-engine-0.crt", "demo-engine-0.key"}


async def test_a_new_engine_gets_a_certificate_before_its_pod_exists_and_the_others_keep_theirs() -> None:
    visited = Visited()
    await visited.visit()
    before, written = visited.data(ENGINES), len(visited.api.writes)
    visited.api.put_cluster("ns", "demo", {**SPEC, "engine": {"type": "Simulator", "replicas": 3}})
    await visited.visit()
    after = visited.data(ENGINES)
    assert before.items() < after.items()
    assert {f"demo-engine-{number}.key" for number in range(3)} <= after.keys()
    writes = visited.api.writes[written:]
    assert writes.index(f"apply Secret {ENGINES}") < writes.index("apply StatefulSet demo-engine")


@pytest.mark.parametrize("name", ["demo-ca", "demo-ticket-key", "demo-admin-tls", ENGINES])
async def test_a_secret_that_was_planted_with_our_labels_is_not_used(name: str) -> None:
    """Whoever may write Secrets in the namespace would otherwise know the keys of the cluster that is created next."""
    visited = Visited()
    labels = {"app.kubernetes.io/instance": "demo", "app.kubernetes.io/managed-by": "agentserving-operator"}
    planted = {"kind": "Secret", "metadata": {"name": name, "namespace": "ns", "labels": labels}, "data": {}}
    visited.api._store(planted)
    assert await visited.visit() is VisitResult.REFUSED
    assert visited.ready()[0] == "NameTaken"
    assert visited.api.objects["Secret", "ns", name]["data"] == {}


async def test_a_new_ca_is_announced_then_signs_and_etcd_restarts_once() -> None:
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


async def test_etcd_knows_its_trusted_cas_from_the_first_visit_so_it_starts_once() -> None:
    visited = Visited()
    await visited.visit()
    template = visited.api.objects["StatefulSet", "ns", "demo-etcd"]["spec"]["template"]
    assert template["metadata"]["annotations"][TRUST_ANNOTATION]


@pytest.mark.parametrize("name", ["demo-ca", *LEAVES])
async def test_a_deleted_or_damaged_secret_is_repaired(name: str) -> None:
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


async def test_a_secret_of_someone_else_is_reported_and_left_alone() -> None:
    visited = Visited()
    theirs = {"kind": "Secret", "metadata": {"name": "demo-etcd-tls", "namespace": "ns"}, "data": {}}
    visited.api._store(theirs)
    assert await visited.visit() is VisitResult.REFUSED
    assert visited.ready()[0] == "NameTaken"
    assert "Secret demo-etcd-tls exists and does not belong to this cluster" in visited.ready()[1]
    assert visited.api.objects["Secret", "ns", "demo-etcd-tls"]["data"] == {}


async def test_a_ca_that_could_not_be_stored_signs_nothing() -> None:
    visited = Visited()
    visited.api.refuse["demo-ca"] = RefusedError(403, "Forbidden", "no")
    assert await visited.visit() is VisitResult.REFUSED
    assert visited.ready() == ("ApplyRefused", "Secret demo-ca: no")
    assert [name for kind, _, name in visited.api.objects if kind == "Secret"] == ["demo-ticket-key"]


async def test_the_next_visit_completes_one_that_broke_off_at_any_write() -> None:
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


async def test_the_operator_presents_its_own_certificate_and_verifies_the_services_name() -> None:
    visited = Visited()
    await visited.visit()
    visited.serve()
    await visited.visit()
    data = visited.data("demo-operator-tls")
    assert visited.plane.asked == [
        Pem(data["ca.crt"], data["tls.crt"], data["tls.key"], "demo-control-plane.ns.svc")
    ]  # fmt: skip


async def test_secrets_of_cert_manager_are_awaited_and_only_read() -> None:
    visited = Visited(CERT_MANAGER)
    assert await visited.visit() is VisitResult.PENDING
    assert {name for kind, _, name in visited.api.objects if kind == "Certificate"} == {*LEAVES, "demo-engine-0-tls"}
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
    # The engines' certificate is missing.
    assert await visited.visit() is VisitResult.PENDING
    assert visited.plane.asked[0] is not None
    assert not [each for each in visited.api.writes[written:] if "Secret" in each]
    made = issued.api.objects["Secret", "ns", ENGINES]["data"]
    theirs = {"ca.crt": made["ca.crt"], "tls.crt": made["demo-engine-0.crt"], "tls.key": made["demo-engine-0.key"]}
    visited.api._store({"kind": "Secret", "metadata": {"name": "demo-engine-0-tls", "namespace": "ns"}, "data": theirs})
    assert await visited.visit() is VisitResult.SETTLED
    assert visited.api.objects["Secret", "ns", ENGINES]["data"] == made
    assert [each for each in visited.api.writes[written:] if "Secret" in each] == [f"apply Secret {ENGINES}"]


async def test_a_missing_cert_manager_is_reported_with_what_to_do() -> None:
    visited = Visited(CERT_MANAGER)
    apply: Callable[..., Any] = visited.api.apply

    async def without(manifest: Any) -> Any:
        if manifest["kind"] == "Certificate":
            raise RefusedError(404, "", "404 page not found\n")
        return await apply(manifest)

    visited.api.apply = without  # type: ignore[method-assign]
    assert await visited.visit() is VisitResult.REFUSED
    assert visited.ready()[0] == "CertManagerMissing"
    assert "install it, or use" in visited.ready()[1]
    assert ("Deployment", "ns", "demo-gateway") in visited.api.objects


def degraded(visited: Visited) -> tuple[str, str, str]:
    conditions = visited.api.objects[KIND, "ns", "demo"]["status"]["conditions"]
    (found,) = [each for each in conditions if each["type"] == "Degraded"]
    return found["status"], found["reason"], found["message"]


def store_as_others(visited: Visited, name: str, pair: dict[str, str]) -> None:
    visited.api._store({"kind": "Secret", "metadata": {"name": name, "namespace": "ns"}, "data": pair})


async def test_a_certificate_that_others_do_not_renew_is_a_condition_long_before_it_expires() -> None:
    issued = Visited()
    await issued.visit()
    front = {**SPEC, "tls": {"issuer": "None"}, "gateway": {"tls": {"secretName": "front"}}}
    for spec, name in ((CERT_MANAGER, "demo-gateway-tls"), (front, "front")):
        visited = Visited(spec)
        await visited.visit()
        assert degraded(visited)[:2] == ("False", "AsExpected")
        store_as_others(visited, name, issued.api.objects["Secret", "ns", "demo-gateway-tls"]["data"])
        # Due at two thirds of its life: somebody else may be about to renew it.
        await visited.visit(seconds=LEAF_LIFE.total_seconds() * 3 / 4)
        assert degraded(visited)[:2] == ("False", "AsExpected")
        ready = visited.ready()
        await visited.visit(seconds=LEAF_LIFE.total_seconds() / 10)
        status, reason, message = degraded(visited)
        assert (status, reason) == ("True", "CertificateExpires")
        assert f"{name} on 2026-04-01 00:00 UTC" in message
        # It still serves.
        assert visited.ready() == ready
        store_as_others(visited, name, {"tls.crt": "eA==", "tls.key": "eA=="})
        await visited.visit()
        assert degraded(visited)[:2] == ("False", "AsExpected")


async def test_many_certificates_near_their_end_make_a_message_of_bounded_length() -> None:
    issued = Visited({**SPEC, "engine": {"type": "Simulator", "replicas": 20}})
    await issued.visit()
    visited = Visited({**CERT_MANAGER, "engine": {"type": "Simulator", "replicas": 20}})
    for name in LEAVES:
        store_as_others(visited, name, issued.api.objects["Secret", "ns", name]["data"])
    made = issued.api.objects["Secret", "ns", ENGINES]["data"]
    for number in range(20):
        pair = {"ca.crt": made["ca.crt"], "tls.crt": made[f"demo-engine-{number}.crt"],
                "tls.key": made[f"demo-engine-{number}.key"]}  # fmt: skip
        store_as_others(visited, f"demo-engine-{number}-tls", pair)
    await visited.visit(seconds=LEAF_LIFE.total_seconds() * 0.9)
    status, _, message = degraded(visited)
    assert status == "True"
    # Six leaves, and each engine's twice: as issued, and in the Secret that pods mount.
    assert " and 43 more; " in message


async def test_certificates_of_the_operator_are_never_near_their_end() -> None:
    visited = Visited()
    for _ in range(12):
        await visited.visit(days=45)
        assert degraded(visited)[1] == "AsExpected"
