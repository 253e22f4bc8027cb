"""`generate` when the chosen engine does not answer, or refuses the call: no call stays open in the control plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import agentserving
import pytest
from agentserving import AsyncClient, Client
from agentserving.v1 import call_service_pb2, types_pb2
from proto.client.played_plane import NOTHING_LISTENS, Plane, Sidecar, served

Admit, End = call_service_pb2.AdmitCallRequest, call_service_pb2.EndCallRequest
PATH = "/v1/completions"


class Rig:
    """A played control plane, the sidecar of engine e1, and a client of either kind."""

    def __init__(self, plane: Plane, sidecar: Sidecar, address: str, sidecar_address: str, is_async: bool) -> None:
        self.plane, self.sidecar, self.address, self.sidecar_address = plane, sidecar, address, sidecar_address
        self.is_async = is_async

    async def generate(self, program_id: str | None = None) -> tuple[int, bytes]:
        """Status and body of a call."""
        if self.is_async:
            client = AsyncClient(self.address)
            async with client, await client.generate(PATH, {}, program_id=program_id) as response:
                return response.http_status, await response.read()

        def block() -> tuple[int, bytes]:
            with Client(self.address) as client, client.generate(PATH, b"{}", program_id=program_id) as response:
                return response.http_status, response.read()

        return await asyncio.to_thread(block)

    def ends(self) -> list[tuple[str, int, bool]]:
        return [(end.call_id, end.outcome, end.never_started) for end in self.plane.of(End)]


@pytest.fixture(params=[False, True], ids=["blocking", "async"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    plane, sidecar = Plane(), Sidecar()
    async with served(plane) as address, served(sidecar) as sidecar_address:
        yield Rig(plane, sidecar, address, sidecar_address, request.param)


@pytest.mark.parametrize("program_id", ["p", None])
async def test_an_engine_that_cannot_be_reached_is_excluded_and_the_retry_names_the_attempt_and_its_program(
    rig: Rig, program_id: str | None
) -> None:
    rig.plane.sidecars = {"e0": NOTHING_LISTENS, "e1": rig.sidecar_address}
    assert await rig.generate(program_id) == (200, b"{}")
    first, second = rig.plane.of(Admit)
    assert (first.program_id, first.retry_of_call_id, list(first.exclude_engine_ids)) == (program_id or "", "", [])
    expected = program_id or "anonymous-1"
    assert second.program_id == expected
    assert second.retry_of_call_id == f"{expected}.1.1"
    assert list(second.exclude_engine_ids) == ["e0"]
    assert rig.sidecar.calls == [f"{expected}.1.2"]
    # The first attempt ends with the admission of the second.
    assert rig.ends() == []


async def test_two_engines_are_tried_at_most_and_the_last_attempt_is_ended(rig: Rig) -> None:
    rig.plane.sidecars = {"e0": NOTHING_LISTENS, "e2": NOTHING_LISTENS, "e1": rig.sidecar_address}
    with pytest.raises(agentserving.UnavailableError):
        await rig.generate("p")
    assert len(rig.plane.of(Admit)) == 2
    assert rig.ends() == [("p.1.2", types_pb2.OUTCOME_FAILED, False)]


async def test_when_no_other_engine_is_left_the_failed_attempt_is_ended(rig: Rig) -> None:
    rig.plane.sidecars = {"e0": NOTHING_LISTENS}
    with pytest.raises(agentserving.UnavailableError):
        await rig.generate("p")
    assert rig.ends() == [("p.1.1", types_pb2.OUTCOME_FAILED, False)]


@pytest.mark.parametrize(
    ("status", "ends"),
    [
        (200, []),
        (404, [("p.1.1", types_pb2.OUTCOME_REJECTED, False)]),
        (429, [("p.1.1", types_pb2.OUTCOME_REJECTED, False)]),
        (500, [("p.1.1", types_pb2.OUTCOME_FAILED, False)]),
    ],
)
async def test_a_call_that_an_engine_refuses_is_ended_since_no_engine_reports_it(
    rig: Rig, status: int, ends: list[tuple[str, int, bool]]
) -> None:
    rig.plane.sidecars, rig.sidecar.http_status = {"e1": rig.sidecar_address}, status
    assert (await rig.generate("p"))[0] == status
    assert rig.ends() == ends
