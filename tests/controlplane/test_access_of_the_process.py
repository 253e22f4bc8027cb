"""The process with and without authentication: its ports, what it says at the start, and keys that survive it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from agentserving.contract.identity import Role
from agentserving.contract.keys import encode_rows
from agentserving.v1 import key_service_pb2, key_service_pb2_grpc, program_service_pb2, program_service_pb2_grpc
from agentserving_cli.local.ports import free_ports
from controlplane.guarded_plane import a_key, bearer
from support.component import Component
from support.etcd_server import EtcdServer
from support.eventually import DEADLINE_S
from support.served_plane import refusal

ADMIN = a_key(role=Role.ADMIN)
AS_ADMIN = bearer(ADMIN.text)


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    server = EtcdServer()
    server.start()
    yield server
    server.close()


def control_plane(directory: Path, **flags: object) -> Component:
    key, given = directory / "ticket-key", directory / "bootstrap.json"
    key.write_bytes(b"0123456789abcdef")
    given.write_bytes(encode_rows([ADMIN.row]))
    return Component("agentserving_controlplane", directory, ticket_key_file=key, bootstrap_keys=given, **flags)


def test_without_authentication_it_says_so_at_each_start(tmp_path: Path) -> None:
    process = control_plane(tmp_path, listen=f"127.0.0.1:{free_ports(1)[0]}", client_auth="none")
    try:
        process.start().wait_ready()
        assert "no authentication: anyone who reaches this port" in process.log.read_text()
    finally:
        process.kill()


@pytest.mark.etcd
async def test_a_key_outlives_the_process_and_administration_is_not_on_the_clients_port(
    tmp_path: Path, etcd: EtcdServer
) -> None:
    parts, clients = (f"127.0.0.1:{port}" for port in free_ports(2))
    process = control_plane(
        tmp_path, listen=parts, clients_listen=clients, client_auth="keys", store="etcd", etcd_endpoints=etcd.endpoint
    )
    try:
        process.start().wait_ready()
        async with grpc.aio.insecure_channel(parts) as channel:
            keys = key_service_pb2_grpc.KeyServiceStub(channel)
            made = await keys.CreateKey(key_service_pb2.CreateKeyRequest(tenant="acme"), metadata=AS_ADMIN)
            ended = await keys.CreateKey(key_service_pb2.CreateKeyRequest(tenant="acme"), metadata=AS_ADMIN)
            await keys.RevokeKey(key_service_pb2.RevokeKeyRequest(key_id=ended.key.key_id), metadata=AS_ADMIN)
        # Killed: what was answered is durable, whatever happens next.
        process.kill()
        process.start().wait_ready()
        async with grpc.aio.insecure_channel(clients) as channel:
            programs = program_service_pb2_grpc.ProgramServiceStub(channel)
            request = program_service_pb2.ListProgramsRequest()
            await programs.ListPrograms(request, metadata=bearer(made.text), timeout=DEADLINE_S)
            for metadata, reason in ((bearer(ended.text), "KEY_REVOKED"), ((), "NO_CREDENTIAL")):
                assert (await refusal(programs.ListPrograms(request, metadata=metadata))).reason == reason
            keys = key_service_pb2_grpc.KeyServiceStub(channel)
            listed = await refusal(keys.ListKeys(key_service_pb2.ListKeysRequest(), metadata=AS_ADMIN))
            assert (listed.code, listed.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")
        assert '"event": "audit"' in process.log.read_text()
        assert made.text not in process.log.read_text()
        assert 'agentserving_access_refusals_total{reason="key_revoked"} 1.0' in process.get("/metrics")[1]
    finally:
        process.kill()


def test_a_file_of_keys_that_cannot_be_read_is_named_at_the_start(tmp_path: Path) -> None:
    process = control_plane(tmp_path, listen="127.0.0.1:0", client_auth="keys")
    (tmp_path / "bootstrap.json").write_text('[{"key_id": "x"}]')
    process.start()
    assert process.process is not None
    assert process.process.wait(DEADLINE_S) == 2
    assert "bootstrap.json: " in process.log.read_text()
