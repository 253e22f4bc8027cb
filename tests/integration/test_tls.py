"""Mutual TLS between all processes, renewed in use: no process is restarted and no stream breaks."""

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
from agentserving_operator.manifests.certificate_objects import engine_leaves, leaves
from agentserving_operator.manifests.etcd_statefulset import etcd_flags
from agentserving_operator.manifests.tls import Leaf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.certificate_files import HOSTS, CertificateFiles
from support.killable_cluster import until
from support.operator_objects import make_cluster, value_after
from support.streaming_cluster import Agents, StreamingCluster

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(240)]

PROGRAMS = 6


def settings(tls: Any) -> Settings:
    return Settings(tls=tls, deadline_s=15)


async def shown(files: CertificateFiles, listen: str) -> str:
    """The certificate that a server presents to a new connection."""
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


async def test_a_leader_hint_is_verified_by_server_name_and_other_certificates_are_refused() -> None:
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


async def test_a_client_with_a_certificate_generates_at_a_sidecar_and_others_are_refused() -> None:
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
        # The sidecar's certificate is renewed while it runs.
        files.sign()
        assert await generated(files.client()) == 12
        address = value_after(cluster.sidecars["e0"]._argv, "--listen")
        pem = files.pem()
        stranger = Pem(pem.ca, None, None, pem.server_name)
        for tls in (stranger, None):
            async with dial_async(address, Settings(tls=tls)) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with dial_async(address, Settings(tls=pem)) as channel:
            response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
            assert response.status == health_pb2.HealthCheckResponse.SERVING


async def restart_etcd(cluster: StreamingCluster) -> None:
    """etcd reads its CAs once, so the operator replaces its pods when they change."""
    await asyncio.to_thread(cluster.etcd.kill)
    await asyncio.to_thread(cluster.etcd.start)


async def test_a_new_ca_replaces_the_old_one_under_load() -> None:
    async with StreamingCluster(engines=2, planes=2, tls=True, lease_s=8) as cluster:
        files = cluster.certificates
        assert files is not None
        assert cluster.gateway is not None
        kept = [cluster.gateway.picker, *cluster.sidecars.values()]
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
        # The old CA is no longer trusted: new and reconnecting peers must use the new certificates.
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


async def test_an_unreadable_certificate_leaves_the_previous_one_in_use() -> None:
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
    """etcd members with the flags of the manifests, each at its own loopback address."""
    flags = etcd_flags(make_cluster(tls={"issuer": "Operator"}, store={"etcd": {"members": 3}}))
    members = []
    try:
        for index in range(3):
            argv = [find_etcd()]
            for each in flags:
                text = each.replace("$(POD_NAME)", f"demo-etcd-{index}").replace("0.0.0.0", member(index))
                text = re.sub(r"demo-etcd-(\d)\.demo-etcd-peers\.ns\.svc", lambda m: member(int(m[1])), text)
                text = text.replace("/var/lib/etcd", str(directory / f"data-{index}"))
                argv.append(text.replace("/etc/agentserving/etcd-tls", str(files.paths("etcd")["ca"].parent)))
            with (directory / f"etcd-{index}.log").open("wb") as log:
                members.append(subprocess.Popen(argv, stdout=log, stderr=log))
        yield members
    finally:
        for process in members:
            process.kill()
            process.wait()


async def opens(address: str, files: CertificateFiles, leaf: str, port: int = 2379, path: str = "/version") -> bool:
    """Whether etcd serves a request that is made with a leaf's certificate, or without any."""
    context = ssl.create_default_context(cafile=str(files.paths("etcd")["ca"]))
    if leaf:
        context.load_cert_chain(files.paths(leaf)["cert"], files.paths(leaf)["key"])
    try:
        reader, writer = await asyncio.open_connection(address, port, ssl=context)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        line = await reader.readline()
        writer.close()
    except OSError:
        return False
    return b" 200 " in line


async def test_three_etcd_members_with_tls_form_a_cluster_and_survive_the_loss_of_one(tmp_path: Path) -> None:
    addresses = [member(index) for index in range(3)]
    cluster = make_cluster(store={"etcd": {"members": 3}})
    names = leaves(cluster)
    hosts = {leaf.value: names[leaf] for leaf in (Leaf.CONTROL_PLANE, Leaf.GATEWAY, Leaf.ADMIN, Leaf.CLIENT)}
    hosts |= {"engine": engine_leaves(cluster)["demo-engine-0"], "etcd": [*addresses, "127.0.0.1", *names[Leaf.ETCD]]}
    files = CertificateFiles(tmp_path, hosts)
    endpoints = tuple(f"{address}:2379" for address in addresses)
    with etcd_members(tmp_path, files) as processes:
        store = EtcdStore(endpoints, "/t", Tls(**files.paths("control-plane")))
        try:
            async with asyncio.timeout(60):
                epoch = await store.acquire("here")
            await store.commit(epoch, [Write("a", b"1")])
            for leaf in ("gateway", "admin", "client", "engine", ""):
                assert not await opens(addresses[0], files, leaf), f"{leaf or 'no'} certificate"
            assert await opens(addresses[0], files, "control-plane")
            # Nor may they speak as members.
            assert not await opens(addresses[0], files, "control-plane", 2380, "/members")
            assert await opens(addresses[0], files, "etcd", 2380, "/members")
            # New key pairs of the same CA, as a restarted peer finds them.
            files.sign()
            processes[0].kill()
            processes[0].wait()
            await store.commit(epoch, [Write("b", b"2")])
            assert set((await store.load()).items) == {"a", "b"}
        finally:
            await store.close()
