"""Clients that retry through every failure, and what their engines ran: the table must agree to the microsecond."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
from agentserving.v1 import call_service_pb2, program_service_pb2, types_pb2
from support.killable_cluster import KillableCluster

ROOTS, CHILDREN = 30, 3


@dataclass
class Truth:
    """What the engines ran, per program."""

    service_us: Counter[str] = field(default_factory=Counter)
    wait_us: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    root: dict[str, str] = field(default_factory=dict)

    @property
    def account_us(self) -> Counter[str]:
        """Attained service per root program, as PLAS accounts for it."""
        accounts: Counter[str] = Counter()
        for program, service in self.service_us.items():
            accounts[self.root[program]] += service
        return accounts


class Load:
    """Clients that send the same request with the same idempotency key until it is answered."""

    def __init__(self, cluster: KillableCluster, dice: random.Random) -> None:
        self.cluster, self.dice, self.truth = cluster, dice, Truth()
        self.stopping = False
        self.keys = 0
        self.failures: Counter[str] = Counter()
        self.admitted = 0
        # Calls whose admission a killed control plane had not committed: adopted from their reports.
        self.adopted = 0.0
        self.finished_while_away = 0

    async def _insist(self, method: str, request: object) -> object:
        stub = self.cluster.calls if method == "AdmitCall" else self.cluster.programs
        while True:
            try:
                return await getattr(stub, method)(request, timeout=2)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                self.failures[error.code().name] += 1
                await asyncio.sleep(0.1)

    async def open_programs(self) -> None:
        """Opens root programs with children."""
        for number in range(ROOTS):
            root = f"root{number}"
            names = [(root, ""), *((f"{root}/{child}", root) for child in range(CHILDREN))]
            for program, parent in names:
                self.truth.root[program] = root
                await self._insist(
                    "OpenProgram",
                    program_service_pb2.OpenProgramRequest(
                        program_id=program, parent_program_id=parent, idempotency_key=program
                    ),
                )

    async def client(self) -> None:
        """Makes one call after another, each of a random program, until `stopping`."""
        dice, truth = self.dice, self.truth
        while not self.stopping:
            program = dice.choice(list(truth.root))
            self.keys += 1
            request = call_service_pb2.AdmitCallRequest(program_id=program, idempotency_key=f"call{self.keys}")
            admitted = await self._insist("AdmitCall", request)
            assert isinstance(admitted, call_service_pb2.AdmitCallResponse)
            pieces = [(dice.uniform(0, 0.15), dice.randint(0, 500_000)) for _ in range(dice.randint(1, 3))]
            wait_us, tokens = dice.randint(0, 1_000_000), dice.randint(1, 500)
            self.admitted += 1
            await self.cluster.engines[admitted.engine_id].run(admitted.ticket, pieces, wait_us, tokens)
            self.finished_while_away += self.cluster.control_plane.process is None
            truth.calls[program] += 1
            truth.service_us[program] += sum(service for _, service in pieces)
            truth.wait_us[program] += wait_us
            truth.tokens[program] += tokens


def assert_same(table: Mapping[str, types_pb2.Program], truth: Truth) -> None:
    """Fails unless the table has exactly the programs, calls, tokens and times of `truth`, and no call in flight."""
    rows = {program: row for program, row in table.items() if program in truth.root}
    assert rows.keys() == truth.root.keys()
    for name, wanted in (
        ("calls_completed", truth.calls),
        ("total_service_us", truth.service_us),
        ("wait_us", truth.wait_us),
        ("output_tokens", truth.tokens),
    ):
        found = {program: getattr(row, name) for program, row in rows.items()}
        assert found == {program: wanted[program] for program in truth.root}, name
    accounts = {row.root_program_id: row.attained_service_us for row in rows.values()}
    assert accounts == {root: truth.account_us[root] for root in accounts}
    assert not any(row.calls for row in rows.values())
    assert table.keys() == rows.keys()
