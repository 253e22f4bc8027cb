"""Accounts that move reach the other engines of their trees: once each at first, then together."""

from __future__ import annotations

from collections.abc import Iterable

from agentserving.contract.ids import EngineId, ProgramId, ProgramKey
from agentserving_controlplane.calls import Admission
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.engine_sessions import EngineReport, EngineSession
from agentserving_controlplane.engines.directives import Accounts
from agentserving_controlplane.table.reports import CallReport
from agentserving_controlplane.table.states import Outcome
from controlplane.leader_builders import ACME, admit, attach, leader, sent, until


def admit_on(plane: ControlPlane, program: str, engine_id: str, others: Iterable[str]) -> Admission:
    return admit(plane, program, exclude_engine_ids=frozenset(map(EngineId, others)) - {EngineId(engine_id)})


async def ended(session: EngineSession, admissions: Iterable[Admission], service_us: int) -> None:
    assert session.engine is not None
    calls = tuple(
        CallReport(
            call_id=each.call_id, program_id=each.program_id, engine_id=session.engine.engine_id, tenant=ACME,
            root=each.program_id, attempt=each.attempt, boot_id="b", service_us=service_us, outcome=Outcome.COMPLETED,
        )
        for each in admissions
    )  # fmt: skip
    await session.report(EngineReport(calls=calls))


def accounts(messages: Iterable[Accounts]) -> list[tuple[str, int]]:
    return [(each.root.program_id, each.attained_service_us) for message in messages for each in message.accounts]


async def test_an_account_that_moves_while_all_is_quiet_is_sent_at_once_and_not_to_the_reporter() -> None:
    async with leader() as plane:
        names = ("e1", "e2", "e3")
        first, second, third = [await attach(plane, name) for name in names]
        calls = [admit_on(plane, "p", name, names) for name in ("e1", "e2")]
        for session in (first, second, third):
            sent(session, Accounts)
        await ended(first, calls[:1], 7)
        assert accounts(sent(second, Accounts)) == [("p", 7)]
        assert not sent(first, Accounts), "it has reported the service itself"
        assert not sent(third, Accounts), "it runs no call of the tree"


async def test_accounts_that_move_together_are_sent_once_with_their_last_values() -> None:
    async with leader() as plane:
        names = ("e1", "e2")
        first, second = [await attach(plane, name) for name in names]
        # Both engines keep a call of each tree to the end.
        for program in ("p", "q"):
            for name in names:
                admit_on(plane, program, name, names)
        rounds = 40
        calls = [[admit_on(plane, program, "e1", names) for program in ("p", "q")] for _ in range(rounds)]
        for session in (first, second):
            sent(session, Accounts)
        for number, both in enumerate(calls, start=1):
            await ended(first, both, number)
        row = plane.table.rows
        expected = {key.program_id: root.attained_service_us for key, root in row.items()}
        received: list[Accounts] = []

        def is_known() -> bool:
            received.extend(sent(second, Accounts))
            return dict(accounts(received)) == expected

        await until(is_known)
        # Two programs of a call each, and more while the machine is slow; by no means a message a call.
        assert len(accounts(received)) < 2 * rounds
        values = [value for program, value in accounts(received) if program == "p"]
        assert values == sorted(values)


async def test_when_several_engines_have_moved_an_account_each_of_them_learns_the_sum() -> None:
    async with leader() as plane:
        names = ("e1", "e2")
        sessions = [await attach(plane, name) for name in names]
        staying = [admit_on(plane, "p", name, names) for name in names]
        assert len(staying) == 2
        calls = [admit_on(plane, "p", name, names) for name in names for _ in range(2)]
        await ended(sessions[0], calls[:1], 1)
        # Within the interval that the first one has begun.
        await ended(sessions[0], calls[1:2], 10)
        await ended(sessions[1], calls[2:], 100)
        (root,) = plane.table.rows.values()
        for session in sessions:
            received: list[Accounts] = []

            def is_known(session: EngineSession = session, received: list[Accounts] = received) -> bool:
                received.extend(sent(session, Accounts))
                return bool(received) and accounts(received)[-1] == ("p", root.attained_service_us)

            await until(is_known)


async def test_a_tree_that_is_forgotten_before_its_account_is_sent_is_left_out() -> None:
    async with leader() as plane:
        session = await attach(plane)
        admit(plane, "p")
        (known,) = plane.table.rows
        sent(session, Accounts)
        plane.accounts.moved(known, EngineId("other"))
        plane.accounts.moved(ProgramKey(ACME, ProgramId("gone")), EngineId("other"))
        plane.accounts.flush()
        assert accounts(sent(session, Accounts)) == [("p", 0)]
        assert not plane.accounts.is_waiting
