"""Certificates on both sides between all processes, renewed under them: nothing is restarted, no stream breaks."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentserving import AsyncClient
from agentserving.transport.channels import dial_async
from agentserving.transport.connection import Pem, Settings, Tls
from agentserving.transport.errors import UnavailableError
from agentserving_cli.local.cluster import find_etcd
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.store.port import Write
from agentserving_operator.manifests.etcd_statefulset import etcd_statefulset
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.certificate_files import HOSTS, CertificateFiles
from support.killable_cluster import until
from support.operator_objects import make_cluster, only_container, value_after
from support.streaming_cluster import Agents, StreamingCluster

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(240)]

PROGRAMS = 6


def settings(tls: Any) -> Settings:
    return Settings(tls=tls, deadline_s=15)


async def shown(files: CertificateFiles, listen: str) -> str:
    """The certificate that a server shows to a connection made now."""
    paths = files.paths("client")
    context = ssl.create_default_context(cafile=str(paths["ca"]))
    context.load_cert_chain(paths["cert"], paths["key"])
    host, _, port = listen.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=HOSTS["control-plane"][0])
    try:
        found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return ssl.DER_cert_to_PEM_cert(found)
    finally:
        writer.close()


async def test_a_hint_to_an_address_that_no_certificate_knows_is_followed_by_name() -> None:
    async with StreamingCluster(engines=1, planes=2, tls=True, lease_s=5) as cluster:
        assert cluster.certificates is not None
        leader = await cluster.leader()
        (follower,) = set(cluster.planes) - {leader}
        await cluster.follows(follower)
        pem = cluster.certificates.pem()
        async with AsyncClient(follower, settings=settings(pem)) as client:
            assert (await client.get_policy()).policy.name == "plas"
            assert client._leader.address == leader
        strangers = (
            Pem(pem.ca, pem.cert, pem.key),
            Pem(pem.ca, None, None, pem.server_name),
            Pem(CertificateFiles.new_ca().cert, pem.cert, pem.key, pem.server_name),
            None,
        )
        for stranger in strangers:
            async with AsyncClient(leader, settings=Settings(tls=stranger, deadline_s=5, attempts=1)) as client:
                with pytest.raises(UnavailableError):
                    await client.get_policy()


async def test_a_client_generates_at_a_sidecar_that_it_knows_by_name_and_nobody_else_does() -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12}
    async with StreamingCluster(engines=1, tls=True) as cluster:
        files = cluster.certificates
        assert files is not None

        async def generated(tls: Tls | Pem) -> int:
            async with (
                AsyncClient(cluster.addresses, settings=settings(tls)) as client,
                await client.generate("/v1/chat/completions", body, program_id="asker") as answer,
            ):
                found: int = json.loads(await answer.read())["usage"]["completion_tokens"]
                return found

        assert await generated(files.client()) == 12
        # Renewed under the sidecar.
        files.sign()
        assert await generated(files.client()) == 12
        address = value_after(cluster.sidecars["e0"]._argv, "--listen")
        pem = files.pem()
        stranger = Pem(pem.ca, None, None, pem.server_name)
        for tls in (stranger, None):
            async with dial_async(address, Settings(tls=tls)) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with dial_async(address, Settings(tls=pem)) as channel:
            told = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert told.status == health_pb2.HealthCheckResponse.SERVING


async def restart_etcd(cluster: StreamingCluster) -> None:
    """It reads the CAs once: its pods are replaced when they change."""
    await asyncio.to_thread(cluster.etcd.kill)
    await asyncio.to_thread(cluster.etcd.start)


async def test_a_new_ca_and_new_certificates_take_over_under_load() -> None:
    async with StreamingCluster(engines=2, planes=2, tls=True, lease_s=8) as cluster:
        files = cluster.certificates
        assert files is not None
        kept = [cluster.gateway, *cluster.sidecars.values()]
        processes = [component.process for component in kept]
        agents = Agents(cluster.url, "agent", PROGRAMS, tokens=40)
        running = asyncio.create_task(agents.run())

        async def more() -> None:
            wanted = len(agents.admitted) + 2 * PROGRAMS
            await until(lambda: len(agents.admitted) >= wanted)

        await more()
        old, new = files.signer, files.new_ca()
        files.sign(trusted=(new,))
        await restart_etcd(cluster)
        await more()
        files.signer = new
        files.sign(trusted=(old,))
        for listen in cluster.planes:
            assert await shown(files, listen) == files.paths("control-plane")["cert"].read_text()
        await more()
        # The old CA has ended. Whoever comes now, and whoever was there and comes back, has the new certificates.
        files.sign()
        await restart_etcd(cluster)
        leader = await cluster.leader()
        await asyncio.to_thread(cluster.planes[leader].kill)
        await cluster.leader(but=leader)
        await cluster.attached()
        await more()
        agents.stop()
        async with asyncio.timeout(60):
            await running
        assert agents.broken == []
        assert [component.process for component in kept] == processes
        assert all(process is not None and process.poll() is None for process in processes)
        assert "certificates were renewed" in cluster.planes[leader].log.read_text()
        assert "certificates for etcd were renewed" in "".join(p.log.read_text() for p in cluster.planes.values())


async def test_a_certificate_that_cannot_be_read_leaves_the_one_before() -> None:
    async with StreamingCluster(engines=1, tls=True) as cluster:
        files = cluster.certificates
        assert files is not None
        before = files.paths("control-plane")["cert"].read_text()
        files.paths("control-plane")["cert"].unlink()
        assert await shown(files, cluster.listen) == before
        assert "certificate cannot be read, using the previous one" in cluster.control_plane.log.read_text()
        files.sign()
        assert await shown(files, cluster.listen) == files.paths("control-plane")["cert"].read_text() != before


def member(index: int) -> str:
    return f"127.0.78.{index + 1}"


@contextmanager
def etcd_members(directory: Path, files: CertificateFiles) -> Iterator[list[subprocess.Popen[bytes]]]:
    """What the manifests start, each at an address of its own."""
    container = only_container(
        etcd_statefulset(make_cluster(tls={"issuer": "Operator"}, store={"etcd": {"members": 3}}))
    )
    started = []
    try:
        for index in range(3):
            argv = [find_etcd()]
            for each in container["args"]:
                text = each.replace("$(POD_NAME)", f"demo-etcd-{index}").replace("0.0.0.0", member(index))
                text = re.sub(r"demo-etcd-(\d)\.demo-etcd-peers\.ns\.svc", lambda m: member(int(m[1])), text)
                text = text.replace("/var/lib/etcd", str(directory / f"data-{index}"))
                argv.append(text.replace("/etc/agentserving/etcd-tls", str(files.paths("etcd")["ca"].parent)))
            with (directory / f"etcd-{index}.log").open("wb") as log:
                started.append(subprocess.Popen(argv, stdout=log, stderr=log))
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


async def test_three_members_of_etcd_find_each_other_by_their_certificates_and_outlive_one(tmp_path: Path) -> None:
    addresses = [member(index) for index in range(3)]
    files = CertificateFiles(tmp_path, {**HOSTS, "etcd": [*addresses, "127.0.0.1", "localhost"]})
    endpoints = tuple(f"{address}:2379" for address in addresses)
    with etcd_members(tmp_path, files) as processes:
        store = EtcdStore(endpoints, "/t", files.client())
        try:
            async with asyncio.timeout(60):
                epoch = await store.acquire("here")
            await store.commit(epoch, [Write("a", b"1")])
            # With another key pair, by the same CA, as a peer that comes back has it.
            files.sign()
            processes[0].kill()
            processes[0].wait()
            await store.commit(epoch, [Write("b", b"2")])
            assert set((await store.load()).items) == {"a", "b"}
        finally:
            await store.close()
