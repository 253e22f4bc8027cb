"""Policies survive upgrades: what earlier versions stored is read, and what is stored now is small.

The files in policy_format_1 were written by the last version that stored protobuf messages: "fcfs" applied with the key
"first", then NIGHT with the key "second".
"""

from __future__ import annotations

from pathlib import Path

import grpc
import msgspec
import pytest
from agentserving.contract.policy import PRESETS, Accounting, Level, Order, Policy, Source
from agentserving.contract.policy_message import policy_to
from agentserving.v1 import admin_service_pb2, admin_service_pb2_grpc, types_pb2
from agentserving_cli.local.ports import free_ports
from agentserving_controlplane.api.conversion import policy_version_from_bytes
from agentserving_controlplane.policy import stored
from agentserving_controlplane.policy.in_force import POLICY_KEY, REQUESTS_KEY
from agentserving_controlplane.policy.version import Balancer, PolicyVersion
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.store.port import Write
from support.component import Component
from support.etcd_server import EtcdServer

OLD = Path(__file__).parent / "policy_format_1"
NIGHT = Policy(
    name="night",
    accounting=Accounting.CRITICAL_PATH,
    levels=(Level(250_000, 250_000, 3), Level(rank=9)),
    order=Order.PROGRAM_ARRIVAL,
    beta_milli=5000,
    max_preemptions=7,
    decision_interval_steps=2,
    unmanaged_level=1,
    source=Source.GITTINS,
    classes=(("crawler", (Level(1 << 50, 9, 0), Level())),),
    retention_milli=1500,
)


@pytest.mark.parametrize("policy", [*PRESETS.values(), NIGHT], ids=lambda policy: policy.name)
def test_a_policy_is_read_as_it_was_stored_now_and_by_earlier_versions(policy: Policy) -> None:
    version = PolicyVersion(7, policy, Balancer.PREFIX_AWARE)
    message = types_pb2.PolicyVersion(version=7, policy=policy_to(policy), balancer=types_pb2.BALANCER_PREFIX_AWARE)
    for data in (stored.encode(version), msgspec.msgpack.encode(version), message.SerializeToString()):
        assert stored.decode(data, policy_version_from_bytes) == version


@pytest.mark.parametrize("data", [b"", b"\x08", b"\x08\x01", b"\x90", b"\x80", b"\xff\xff", b"{}"])
def test_what_is_no_policy_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(stored.UnreadablePolicyError):
        stored.decode(data, policy_version_from_bytes)


@pytest.mark.etcd
async def test_an_upgraded_control_plane_goes_on_with_the_stored_policy(tmp_path: Path) -> None:
    etcd = EtcdServer()
    etcd.start()
    (port,) = free_ports(1)
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    process = Component(
        "agentserving_controlplane", tmp_path, listen=f"127.0.0.1:{port}", store="etcd", etcd_prefix="/upgraded",
        etcd_endpoints=etcd.endpoint, ticket_key_file=key, policy="plas",
    )  # fmt: skip
    try:
        store = EtcdStore((etcd.endpoint,), "/upgraded")
        epoch = await store.acquire("the earlier version")
        await store.commit(epoch, [Write(name, (OLD / name).read_bytes()) for name in (POLICY_KEY, REQUESTS_KEY)])
        await store.resign()
        await store.close()
        process.start().wait_ready()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            admin = admin_service_pb2_grpc.AdminServiceStub(channel)
            in_force = (await admin.GetPolicy(admin_service_pb2.GetPolicyRequest())).policy
            assert (in_force.version, in_force.policy) == (3, policy_to(NIGHT))
            assert in_force.balancer == types_pb2.BALANCER_PREFIX_AWARE
            first = admin_service_pb2.ApplyPolicyRequest(policy=types_pb2.Policy(name="fcfs"), idempotency_key="first")
            assert (await admin.ApplyPolicy(first)).policy.version == 2, "a request is recognised after the upgrade"
            first.idempotency_key = "third"
            assert (await admin.ApplyPolicy(first)).policy.version == 4
    finally:
        process.kill()
        etcd.close()
