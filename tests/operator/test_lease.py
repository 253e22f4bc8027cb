"""Leader election in virtual time: at most one operator works, and another one follows when it ends."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from agentserving_operator.errors import ConflictError, RefusedError, UnavailableError
from agentserving_operator.lease import LEASE_S, RENEW_S, RETRY_S, LostLeaseError, lead
from support.virtual_loop import run

LEASE = "ns/operators"
FOREVER = 1e9


class Leases:
    """One Lease, with the API server's check of resource versions. `network` runs before and after each request."""

    def __init__(self, spec: dict[str, Any] | None = None) -> None:
        self.live: dict[str, Any] | None = {
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"namespace": "ns", "name": "operators", "resourceVersion": "1"}, "spec": spec or {},
        }  # fmt: skip

    def client(self, network: Callable[[], Awaitable[None]] | None = None) -> LeaseClient:
        return LeaseClient(self, network or _nothing)

    @property
    def spec(self) -> dict[str, Any]:
        assert self.live is not None
        return dict(self.live["spec"])


class LeaseClient:
    """What `lead` asks of the API server."""

    def __init__(self, leases: Leases, network: Callable[[], Awaitable[None]]) -> None:
        self._leases, self.network = leases, network

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        assert (kind, f"{namespace}/{name}") == ("Lease", LEASE)
        await self.network()
        live = copy.deepcopy(self._leases.live)
        await self.network()
        return live

    async def replace(self, manifest: dict[str, Any]) -> dict[str, Any]:
        await self.network()
        live, metadata = self._leases.live, manifest["metadata"]
        if live is None or metadata["resourceVersion"] != live["metadata"]["resourceVersion"]:
            raise ConflictError(409, "Conflict", "the object has been modified")
        metadata = {**metadata, "resourceVersion": str(int(metadata["resourceVersion"]) + 1)}
        self._leases.live = copy.deepcopy({**manifest, "metadata": metadata})
        await self.network()
        return manifest


async def _nothing() -> None:
    pass


async def _never_answers() -> None:
    await asyncio.sleep(FOREVER)


async def _refused() -> None:
    raise RefusedError(403, "Forbidden", "no right to leases")


class Works:
    """Who works since when, in seconds of virtual time."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}

    def of(self, name: str, for_s: float = FOREVER) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            now = asyncio.get_running_loop().time
            self.began[name] = now()
            try:
                await asyncio.sleep(for_s)
            finally:
                self.ended[name] = now()

        return work


def test_one_works_and_the_other_follows_immediately_when_it_ends() -> None:
    leases, works = Leases(), Works()

    async def scene() -> None:
        first = asyncio.create_task(lead(leases.client(), LEASE, "one", works.of("one", for_s=3600)))
        await asyncio.sleep(1)
        second = asyncio.create_task(lead(leases.client(), LEASE, "two", works.of("two", for_s=1)))
        await asyncio.sleep(3000)
        assert leases.spec["holderIdentity"] == "one"
        assert set(works.began) == {"one"}
        await asyncio.gather(first, second)

    run(scene())
    assert works.began["one"] == 0
    assert 0 <= works.began["two"] - works.ended["one"] <= RETRY_S
    assert not leases.spec["holderIdentity"]
    assert leases.spec["leaseTransitions"] == 2


def test_the_lease_is_written_as_kubernetes_controllers_write_it() -> None:
    leases, works = Leases(), Works()

    async def scene() -> None:
        leader = asyncio.create_task(lead(leases.client(), LEASE, "one", works.of("one")))
        await asyncio.sleep(1)
        taken = leases.spec
        await asyncio.sleep(10 * RETRY_S)
        renewed = leases.spec
        # MicroTime, which has six digits.
        assert [len(taken[key]) for key in ("acquireTime", "renewTime")] == [len("2026-01-01T00:00:00.000000Z")] * 2
        assert (taken["holderIdentity"], taken["leaseDurationSeconds"]) == ("one", LEASE_S)
        assert {**taken, "renewTime": None} == {**renewed, "renewTime": None}
        assert renewed["renewTime"] > taken["renewTime"]
        leader.cancel()
        await asyncio.gather(leader, return_exceptions=True)

    run(scene())


@pytest.mark.parametrize("renewed", ["1999-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z", None])
def test_a_dead_leaders_lease_is_taken_after_its_duration_by_ones_own_clock(renewed: str | None) -> None:
    """Whatever the dead leader's clock said."""
    leases = Leases({"holderIdentity": "dead", "leaseDurationSeconds": 40, "renewTime": renewed})
    works = Works()
    run(lead(leases.client(), LEASE, "one", works.of("one", for_s=1)))
    assert 40 <= works.began["one"] <= 40 + RETRY_S


def test_its_own_lease_from_before_a_restart_is_taken_immediately() -> None:
    leases, works = Leases({"holderIdentity": "one", "leaseDurationSeconds": 15, "renewTime": "then"}), Works()
    run(lead(leases.client(), LEASE, "one", works.of("one", for_s=1)))
    assert works.began["one"] == 0


@pytest.mark.parametrize("outage", [_never_answers, _refused], ids=["no answer", "refused"])
def test_work_is_cancelled_before_another_may_start_when_the_lease_cannot_be_renewed(
    outage: Callable[[], Awaitable[None]],
) -> None:
    leases, works = Leases(), Works()
    client = leases.client()

    async def scene() -> None:
        leader = asyncio.create_task(lead(client, LEASE, "one", works.of("one")))
        await asyncio.sleep(99)
        client.network = outage
        with pytest.raises(LostLeaseError):
            await leader

    run(scene())
    assert 99 < works.ended["one"] <= 99 + RENEW_S


def test_a_short_outage_is_survived() -> None:
    leases, works = Leases(), Works()
    client = leases.client()

    async def scene() -> None:
        leader = asyncio.create_task(lead(client, LEASE, "one", works.of("one", for_s=600)))
        await asyncio.sleep(99)
        client.network = _refused
        await asyncio.sleep(RENEW_S - 2 * RETRY_S)
        client.network = _nothing
        await leader

    run(scene())
    assert works.ended["one"] == 600


def test_a_leader_ends_when_another_holds_its_lease() -> None:
    leases, works = Leases(), Works()

    async def scene() -> None:
        leader = asyncio.create_task(lead(leases.client(), LEASE, "one", works.of("one")))
        await asyncio.sleep(1)
        assert leases.live is not None
        leases.live["spec"]["holderIdentity"] = "usurper"
        with pytest.raises(LostLeaseError):
            await leader

    run(scene())
    assert leases.spec["holderIdentity"] == "usurper"
    assert works.ended["one"] <= 1 + RETRY_S


def test_without_a_lease_it_waits_and_creates_none() -> None:
    leases, works = Leases(), Works()
    made, leases.live = leases.live, None

    async def scene() -> None:
        leader = asyncio.create_task(lead(leases.client(), LEASE, "one", works.of("one", for_s=1)))
        await asyncio.sleep(600)
        assert leases.live is None
        leases.live = made
        await leader

    run(scene())
    assert 600 <= works.began["one"] <= 600 + RETRY_S


def test_what_work_raises_is_raised() -> None:
    async def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(lead(Leases().client(), LEASE, "one", work))


@pytest.mark.parametrize("seed", range(20))
def test_at_most_one_works_however_slow_and_broken_the_network_is(seed: int) -> None:
    drawn = random.Random(seed)
    leases, working, turns = Leases(), set[str](), list[str]()

    async def network() -> None:
        kind = drawn.random()
        await asyncio.sleep(drawn.uniform(0, 20) if kind < 0.1 else drawn.uniform(0, 0.5))
        if 0.1 <= kind < 0.2:
            raise UnavailableError("cut off")

    async def operator(name: str) -> None:
        async def work() -> None:
            assert working == set()
            working.add(name)
            turns.append(name)
            try:
                await asyncio.sleep(drawn.uniform(0, 300))
            finally:
                working.remove(name)

        while True:
            try:
                await lead(leases.client(network), LEASE, name, work)
            except LostLeaseError:
                await asyncio.sleep(drawn.uniform(0, 10))

    async def scene() -> None:
        operators = [asyncio.create_task(operator(name)) for name in ("one", "two", "three")]
        done, _ = await asyncio.wait(operators, timeout=20_000)
        assert not done, [each.exception() for each in done]
        for each in operators:
            each.cancel()
        await asyncio.gather(*operators, return_exceptions=True)

    run(scene())
    assert len(turns) > 20
    assert set(turns) == {"one", "two", "three"}
