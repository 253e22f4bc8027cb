"""A program that its client closes takes its sub-agents along: calls have opened them, so no client would."""

from __future__ import annotations

from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.states import Outcome, ProgramState
from controlplane.table_builders import Disk, admit, at, end, key, open_program


def states(table: ProcessTable) -> dict[str, tuple[ProgramState, Outcome]]:
    return {program.program_id: (row.state, row.outcome) for program, row in table.rows.items()}


ACTIVE = (ProgramState.ACTIVE, Outcome.NONE)
FAILED = (ProgramState.CLOSED, Outcome.FAILED)
COMPLETED = (ProgramState.CLOSED, Outcome.COMPLETED)


def test_sub_agents_of_headers_end_with_their_run_and_those_of_other_clients_do_not() -> None:
    table = ProcessTable(1)
    run = open_program(table, "run")
    for program, parent in (("agent", "run"), ("agent-of-agent", "agent")):
        call = admit(table, program, implicit=True, parent_program_id=parent)
        end(table, program, call.call_id, Outcome.COMPLETED)
    # A program of another client, and a sub-agent of it.
    open_program(table, "other", parent="run")
    call = admit(table, "agent-of-other", implicit=True, parent_program_id="other")
    end(table, "agent-of-other", call.call_id, Outcome.COMPLETED)
    table.programs.close_tree(run, Outcome.FAILED, at(1))
    assert states(table) == {
        "run": FAILED, "agent": FAILED, "agent-of-agent": FAILED, "other": ACTIVE, "agent-of-other": ACTIVE
    }  # fmt: skip
    table.programs.close_tree(table.rows[key("other")], Outcome.COMPLETED, at(2))
    assert states(table)["agent-of-other"] == COMPLETED


def test_a_sub_agent_in_a_call_ends_with_it_and_may_go_on_when_it_calls_again() -> None:
    table = ProcessTable(1)
    run = open_program(table, "run")
    call = admit(table, "agent", implicit=True, parent_program_id="run")
    table.programs.close_tree(run, Outcome.COMPLETED, at(1))
    assert states(table)["agent"] == ACTIVE
    end(table, "agent", call.call_id, Outcome.COMPLETED, now=2)
    assert states(table)["agent"] == COMPLETED
    admit(table, "agent", implicit=True, parent_program_id="run", now=3)
    assert states(table)["agent"] == ACTIVE


def test_who_opened_a_program_is_known_after_a_restart() -> None:
    table, disk = ProcessTable(1), Disk()
    open_program(table, "run")
    call = admit(table, "agent", implicit=True, parent_program_id="run")
    end(table, "agent", call.call_id, Outcome.COMPLETED)
    open_program(table, "other", parent="run")
    disk.write(table)
    table = disk.restored(2)
    table.programs.close_tree(table.rows[key("run")], Outcome.COMPLETED, at(1))
    assert states(table) == {"run": COMPLETED, "agent": COMPLETED, "other": ACTIVE}


def test_a_cancelled_program_that_a_client_opens_again_is_that_clients() -> None:
    table = ProcessTable(1)
    run = open_program(table, "run")
    admit(table, "agent", implicit=True, parent_program_id="run")
    table.programs.cancel(table.rows[key("agent")], at(1))
    open_program(table, "agent", now=2)
    for call_id in list(table.rows[key("agent")].calls):
        end(table, "agent", call_id, now=3)
    table.programs.close_tree(run, Outcome.COMPLETED, at(4))
    assert states(table)["agent"] == ACTIVE
