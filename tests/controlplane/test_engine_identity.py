"""Which engine a sidecar may attach and where; and whose calls it may report."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving.contract.identity import Role
from agentserving.v1 import engine_service_pb2, engine_service_pb2_grpc
from agentserving_controlplane import engine_sessions
from agentserving_controlplane.engines.identity import EngineIdentity
from agentserving_controlplane.errors import ForbiddenError
from agentserving_controlplane.table.states import Outcome
from controlplane.guarded_plane import a_key, bearer, guarded
from controlplane.leader_builders import ACME, admit, attach, leader, report
from support.served_plane import refusal


@pytest.mark.parametrize(
    ("address", "peer", "hosts", "allowed"),
    [
        ("10.0.0.5:8000", "10.0.0.5", (), True),
        ("10.0.0.6:8000", "10.0.0.5", (), False),
        ("127.0.0.1:8000", "10.0.0.5", (), False),
        ("127.0.0.1:8000", "127.0.0.1", (), True),
        ("127.0.0.2:8000", "127.0.0.1", (), True),
        ("localhost:8000", "127.0.0.1", (), True),
        ("localhost:8000", "10.0.0.5", (), False),
        ("[::1]:8000", "::1", (), True),
        ("[fd00::5]:8000", "fd00::5", (), True),
        ("[fd00:0:0::5]:8000", "fd00::5", (), True),
        ("[fd00::6]:8000", "fd00::5", (), False),
        ("10.0.9.9:8000", "10.0.0.5", ("10.0.0.0/16",), True),
        ("10.1.9.9:8000", "10.0.0.5", ("10.0.0.0/16", "*.engines.svc"), False),
        ("e1.engines.svc:8000", "10.0.0.5", ("*.engines.svc",), True),
        ("E1.Engines.SVC:8000", "10.0.0.5", ("*.engines.svc",), True),
        ("engines.svc.evil.example:8000", "10.0.0.5", ("*.engines.svc",), False),
        ("10.0.0.5", "10.0.0.5", (), False),
        ("169.254.169.254:80", "10.0.0.5", (), False),
        ("10.0.0.5:8000", "", (), False),
        ("0x0a000005:8000", "10.0.0.5", (), False),
        ("", "10.0.0.5", (), True),
    ],
)
def test_an_engine_is_where_its_sidecar_connects_from_or_where_the_operator_says(
    address: str, peer: str, hosts: tuple[str, ...], allowed: bool
) -> None:
    identity = EngineIdentity(engine_id="e1", peer_host=peer, hosts=hosts)
    if allowed:
        identity.check("e1", address=address)
    else:
        with pytest.raises(ForbiddenError) as caught:
            identity.check("e1", address=address)
        assert (caught.value.reason, caught.value.field) == ("FOREIGN_ADDRESS", "address")


def test_a_sidecar_speaks_for_the_engine_of_its_credential_only() -> None:
    with pytest.raises(ForbiddenError, match="'e1'") as caught:
        EngineIdentity(engine_id="e1", peer_host="10.0.0.5").check("e2", address="10.0.0.5:1")
    assert caught.value.field == "engine_id"
    EngineIdentity(engine_id="", peer_host="10.0.0.5").check("e2", address="10.0.0.5:1")


async def test_a_stranger_replaces_no_engine_and_moves_none() -> None:
    tokens = [a_key(role=Role.SIDECAR, name=name) for name in ("e1", "e2")]
    async with guarded(None, two_ports=False, bootstrap_keys=tuple(each.row for each in tokens)) as plane:
        stub = engine_service_pb2_grpc.EngineServiceStub(await plane.parts())

        async def attaches(text: str, **fields: Any) -> Any:
            stream: Any = stub.Attach(metadata=bearer(text))
            hello = {"engine_id": "e1", "boot_id": "b", "address": "127.0.0.1:9", **fields}
            await stream.write(engine_service_pb2.AttachRequest(hello=engine_service_pb2.EngineHello(**hello)))
            answer = await stream.read()
            return stream, answer

        stream, _ = await attaches(tokens[0].text)
        foreign = await refusal(attaches(tokens[1].text))
        assert (foreign.reason, foreign.field) == ("NOT_ALLOWED", "engine_id")
        for field in ("address", "sidecar_address"):
            moved = await refusal(attaches(tokens[0].text, **{field: "169.254.169.254:80"}))
            assert (moved.reason, moved.field) == ("FOREIGN_ADDRESS", field)
        engine = plane.plane.engines.engines["e1"]  # type: ignore[index]
        assert (engine.attached, engine.address) == (True, "127.0.0.1:9")
        assert not stream.done()
        stream.cancel()


async def test_a_report_about_a_call_of_another_engine_is_refused_and_counted() -> None:
    async with leader() as plane:
        honest = await attach(plane, "e1")
        admitted = admit(plane, "victim")
        stranger = await attach(plane, "e2")
        await report(stranger, admitted, service_us=1 << 49, outcome=Outcome.COMPLETED)
        row = plane.table.find(ACME, "victim")
        assert (row.attained_service_us, len(row.calls), plane.table.totals.reports_refused) == (0, 1, 1)
        assert row.calls[admitted.call_id].engine_id == "e1"
        await report(honest, admitted, service_us=5, outcome=Outcome.COMPLETED)
        assert (row.attained_service_us, len(row.calls)) == (5, 0)


async def test_one_engine_makes_only_so_many_calls_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_sessions, "MAX_ADOPTED", 3)
    async with leader() as plane:
        session = await attach(plane, "e1")
        template = admit(plane, "p")
        for number in range(10):
            ghost = type(template)(
                **{name: getattr(template, name) for name in template.__struct_fields__}
                | {"call_id": f"ghost{number}.0.0", "program_id": f"ghost{number}"}
            )
            await report(session, ghost, service_us=1)
        # A new stream of the same engine gets no new ones.
        again = await attach(plane, "e1")
        await report(again, ghost, service_us=1)
        ghosts = [key for key in plane.table.rows if key.program_id.startswith("ghost")]
        assert (len(ghosts), plane.table.totals.calls_adopted) == (3, 3)
        assert plane.table.totals.reports_refused == 8
