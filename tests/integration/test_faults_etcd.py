"""etcd missing at the start, killed or suspended in mid-run, written by a newer version; expiry of idle programs."""

from __future__ import annotations

import asyncio
import shutil
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from agentserving.v1 import admin_service_pb2, call_service_pb2, program_service_pb2, types_pb2
from agentserving_cli.local.ports import free_ports
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.store.port import Write
from agentserving_controlplane.table.rows import SCHEMA_VERSION, row_key
from grpc import StatusCode
from support.component import Component
from support.etcd_server import EtcdServer
from support.eventually import eventually_async
from support.killable_cluster import KEY, KillableCluster, until
from support.served_plane import Refusal, refusal

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(120)]


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    server = EtcdServer()
    yield server
    server.close()


@pytest.fixture
def control_plane(etcd: EtcdServer, tmp_path: Path) -> Iterator[Component]:
    (tmp_path / "key").write_bytes(KEY)
    component = Component(
        "agentserving_controlplane", tmp_path, listen=f"127.0.0.1:{free_ports(1)[0]}", store="etcd",
        etcd_endpoints=etcd.endpoint, etcd_prefix="/t", ticket_key_file=tmp_path / "key",
    )  # fmt: skip
    yield component
    component.kill()


async def test_a_control_plane_without_etcd_is_alive_but_not_ready_until_etcd_starts(
    etcd: EtcdServer, control_plane: Component
) -> None:
    control_plane.start()
    await until(lambda: "waiting for the store: etcd Range" in control_plane.get("/readyz")[1])
    assert control_plane.get("/readyz")[0] == 503
    assert control_plane.get("/healthz")[0] == 200
    assert "store unavailable, trying again" in control_plane.log.read_text()
    await asyncio.to_thread(etcd.start)
    await asyncio.to_thread(control_plane.wait_ready)


async def test_a_store_written_by_a_newer_version_is_refused_and_left_unchanged(
    etcd: EtcdServer, control_plane: Component
) -> None:
    await asyncio.to_thread(etcd.start)
    store = EtcdStore((etcd.endpoint,), "/t")
    newer = msgspec.msgpack.encode((SCHEMA_VERSION + 1, {"what": "ever"}))
    await store.commit(await store.acquire("newer"), [Write(row_key("default", "p"), newer)])
    control_plane.start()
    assert control_plane.process is not None
    assert await asyncio.to_thread(control_plane.process.wait, 30) == 1
    log = control_plane.log.read_text()
    assert f"rows of schema {SCHEMA_VERSION + 1}, this version reads up to {SCHEMA_VERSION}: upgrade" in log
    assert "Traceback" not in log
    assert (await store.load()).items == {row_key("default", "p"): newer}
    await store.close()


async def test_a_second_control_plane_on_the_same_port_exits_and_leaves_the_store_to_the_first(
    etcd: EtcdServer, control_plane: Component, tmp_path: Path
) -> None:
    await asyncio.to_thread(etcd.start)
    await asyncio.to_thread(control_plane.start().wait_ready)
    second = Component("agentserving_controlplane", tmp_path)
    second._argv += control_plane._argv[5:]
    second.start()
    assert second.process is not None
    assert await asyncio.to_thread(second.process.wait, 30) == 1
    assert "cannot listen" in second.log.read_text()
    assert control_plane.process is not None
    assert control_plane.process.poll() is None
    assert control_plane.metric("agentserving_store_healthy") == 1


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """(certificate, key): self-signed, for 127.0.0.1."""
    cert, key = directory / f"{name}.pem", directory / f"{name}.key"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    subprocess.run(
        [*argv, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to create certificates")
async def test_etcd_with_tls_is_reached_only_with_its_ca_and_a_client_certificate(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "etcd")
    wrong, _ = certificate(tmp_path, "wrong")
    context = ssl.create_default_context(cafile=str(cert))
    context.load_cert_chain(cert, key)

    def ready(url: str) -> bool:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1, context=context) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    server = EtcdServer(
        "--cert-file", str(cert), "--key-file", str(key), "--client-cert-auth", "--trusted-ca-file", str(cert),
        ready=ready,
    )  # fmt: skip
    (tmp_path / "key").write_bytes(KEY)

    def control_plane(**flags: object) -> Component:
        return Component(
            "agentserving_controlplane", tmp_path, listen=f"127.0.0.1:{free_ports(1)[0]}", store="etcd",
            etcd_endpoints=server.endpoint, ticket_key_file=tmp_path / "key", **flags,
        )  # fmt: skip

    good = control_plane(etcd_tls_ca=cert, etcd_tls_cert=cert, etcd_tls_key=key)
    stranger = control_plane(etcd_tls_ca=wrong)
    try:
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(good.start().wait_ready)
        stranger.start()
        await until(lambda: "waiting for the store: etcd Range" in stranger.get("/readyz")[1])
        assert "CERTIFICATE_VERIFY_FAILED" in stranger.log.read_text()
    finally:
        stranger.kill()
        good.kill()
        server.close()


async def overview(cluster: KillableCluster) -> admin_service_pb2.GetOverviewResponse:
    found: admin_service_pb2.GetOverviewResponse = await cluster.admin.GetOverview(
        admin_service_pb2.GetOverviewRequest()
    )
    return found


async def store_is_unhealthy(cluster: KillableCluster) -> bool:
    return not (await overview(cluster)).store_healthy


async def admit_until_refused(cluster: KillableCluster, accepted: dict[str, str]) -> Refusal:
    for number in range(200):
        request = call_service_pb2.AdmitCallRequest(program_id=f"while-away-{number}", implicit=True)
        try:
            answer = await cluster.calls.AdmitCall(request)
        except Exception:
            return await refusal(cluster.calls.AdmitCall(request))
        accepted[answer.program_id] = answer.call_id
    raise AssertionError("200 admissions were accepted")


async def test_without_etcd_calls_are_admitted_up_to_a_limit_and_all_of_them_are_durable_later() -> None:
    async with KillableCluster(engines=1, max_pending_writes=40, lease_s=60) as cluster:
        engine = cluster.engines["e0"]
        await cluster.programs.OpenProgram(program_service_pb2.OpenProgramRequest(program_id="before"))
        running = await cluster.calls.AdmitCall(call_service_pb2.AdmitCallRequest(program_id="before"))
        await until(lambda: cluster.control_plane.metric("agentserving_store_pending_writes") == 0)
        await asyncio.to_thread(cluster.etcd.kill)
        accepted: dict[str, str] = {}
        refused = await admit_until_refused(cluster, accepted)
        assert (refused.code, refused.reason) == (StatusCode.RESOURCE_EXHAUSTED, "STORE_BACKPRESSURE")
        assert refused.retry_after_s == 1.0
        assert len(accepted) == 40
        # A call that runs goes on. Its report is acknowledged once it is durable, not before.
        await engine.run(running.ticket, [(0.01, 77)], 5, 3)
        sidecar = cluster.sidecars["e0"]
        await until(lambda: sidecar.metric("agentserving_sidecar_unacked_reports") == 1)
        await eventually_async(lambda: store_is_unhealthy(cluster))
        seen = await overview(cluster)
        assert "etcd Txn" in seen.store_message
        assert seen.store_pending_writes >= 40
        await asyncio.to_thread(cluster.etcd.start)
        await cluster.acknowledged()
        await until(lambda: cluster.control_plane.metric("agentserving_store_pending_writes") == 0)
        await cluster.restart_control_plane()
        table = await cluster.table()
        assert table.pop("before").total_service_us == 77
        assert {p: row.calls[0].call_id for p, row in table.items()} == accepted


async def test_etcd_suspended_for_less_than_a_lease_delays_acknowledgements_but_no_call() -> None:
    async with KillableCluster(engines=1, lease_s=60) as cluster:
        await cluster.programs.OpenProgram(program_service_pb2.OpenProgramRequest(program_id="p"))
        cluster.etcd.signal(signal.SIGSTOP)
        began = time.monotonic()
        try:
            while time.monotonic() - began < 3 or (await overview(cluster)).store_healthy:
                admitted = await cluster.calls.AdmitCall(call_service_pb2.AdmitCallRequest(program_id="p"), timeout=20)
                await cluster.engines["e0"].run(admitted.ticket, [(0.05, 10)], 0, 1)
        finally:
            cluster.etcd.signal(signal.SIGCONT)
        assert await asyncio.to_thread(cluster.sidecars["e0"].metric, "agentserving_sidecar_unacked_reports") > 0
        await cluster.acknowledged()
        row = (await cluster.table())["p"]
        assert row.total_service_us == 10 * row.calls_completed > 0


def pieces_until(end: asyncio.Event) -> Iterator[tuple[float, int]]:
    """A call that reports every 0.1 s until `end`."""
    while not end.is_set():
        yield 0.1, 1


async def test_idle_programs_and_silent_calls_expire_and_reported_ones_do_not() -> None:
    async with KillableCluster(engines=1, program_idle_s=4, call_idle_s=4, closed_retention_s=4) as cluster:
        for program in ("abandoned", "vanished", "busy"):
            await cluster.programs.OpenProgram(program_service_pb2.OpenProgramRequest(program_id=program))
        await cluster.calls.AdmitCall(call_service_pb2.AdmitCallRequest(program_id="vanished"))
        long = await cluster.calls.AdmitCall(call_service_pb2.AdmitCallRequest(program_id="busy"))
        end = asyncio.Event()
        running = asyncio.create_task(cluster.engines["e0"].run(long.ticket, pieces_until(end), 0, 1))
        outcomes: dict[str, set[int]] = {"abandoned": set(), "vanished": set(), "busy": set()}

        async def only_the_busy_program_is_left() -> bool:
            table = await cluster.table()
            for program, row in table.items():
                outcomes[program].add(row.outcome)
            return table.keys() == {"busy"}

        await eventually_async(only_the_busy_program_is_left)
        assert types_pb2.OUTCOME_EXPIRED in outcomes["abandoned"] & outcomes["vanished"]
        assert outcomes["abandoned"] | outcomes["vanished"] <= {0, types_pb2.OUTCOME_EXPIRED}
        assert outcomes["busy"] == {0}
        assert not running.done()
        metrics = (await asyncio.to_thread(cluster.control_plane.get, "/metrics"))[1]
        assert 'agentserving_calls_completed_total{outcome="expired"} 1.0' in metrics
        await until(lambda: cluster.control_plane.metric("agentserving_store_pending_writes") == 0)
        await cluster.restart_control_plane()
        assert (await cluster.table()).keys() == {"busy"}
        end.set()
        await running
