"""Every client of the table on both engines: an answer, tools, one program, sub-agents, and an end by `cancel`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agentserving import Client as ControlPlane
from clients import installs
from clients.runs import BOUND_S, Done, Place, calls, programs
from clients.table import CLIENTS, MODEL, SIMULATOR, VLLM, Grouping
from integration.local_cluster import Cluster

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(1500)]

HERE = Path(__file__).parent
SCRIPT = f"--engine-arg=--script={HERE / 'script.json'}"
# Flags of `up`, and how the answers begin.
ENGINES = {
    VLLM: ((), "Done. This is a scripted model"),
    SIMULATOR: (("--engine", "simulator", "--model", MODEL, SCRIPT), "Done. This is a simulated engine"),
}
CANCELLED = "OUTCOME_CANCELLED"
COMPLETED = "OUTCOME_COMPLETED"


@pytest.fixture(scope="module", params=[SIMULATOR, pytest.param(VLLM, marks=pytest.mark.vllm)])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def cluster(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    flags, _ = ENGINES[engine]
    made = Cluster(
        tmp_path_factory.mktemp("clients") / "state", "--engines", "1", "--store", "memory", *flags,
        auth=True, bound_s=800,
    )  # fmt: skip
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def place(engine: str, cluster: Cluster, tmp_path: Path) -> Callable[[str], Place]:
    """Where the client of a row runs."""

    def make(name: str) -> Place:
        try:
            return Place(engine, cluster, CLIENTS[name], tmp_path)
        except installs.MissingError as error:
            pytest.skip(f"{name} is NOT run: {error}")

    return make


def named(cluster: Cluster, name: str) -> dict[str, Any]:
    """The one program of this name."""
    (program,) = [each for each in programs(cluster).values() if each["name"] == name]
    return program


def check(there: Place, done: Done) -> None:
    """The client has run its tool and given its answer."""
    assert done.status == 0, done.out
    assert done.tools_run(there.client), done.out
    assert there.client.answer.get(there.engine, ENGINES[there.engine][1]) in done.out


@pytest.mark.parametrize("name", CLIENTS)
def test_under_run_a_client_needs_no_set_up_and_is_one_program(name: str, place: Callable[[str], Place]) -> None:
    there = place(name)
    before = programs(there.cluster)
    done = there.run(there.under_run(f"run of {name}", there.command()), there.environment())
    check(there, done)
    (program,) = [each for key, each in programs(there.cluster).items() if key not in before]
    assert (program["name"], program["outcome"]) == (f"run of {name}", COMPLETED)
    assert calls(program) >= 2, done.out


@pytest.mark.parametrize("name", CLIENTS)
def test_without_run_a_client_is_grouped_by_what_it_sends(name: str, place: Callable[[str], Place]) -> None:
    there = place(name)
    before = programs(there.cluster)
    done = there.run(there.plain_command(), there.plain_environment())
    check(there, done)
    new = {key: each for key, each in programs(there.cluster).items() if key not in before}
    total = sum(map(calls, new.values()))
    assert total >= 2, done.out
    assert all(each["name"].startswith(there.client.named) for each in new.values()), new
    match there.client.grouping:
        case Grouping.HEADER:
            assert len(new) == 1, new
        case Grouping.CONTENT:
            # Nothing says yet that the first call begins a conversation.
            assert sorted(calls(each) for each in new.values()) == sorted([1, total - 1]), new
            assert [key for key in new if key.startswith("c-")], new
        case Grouping.NONE:
            assert len(new) == total, new


@pytest.mark.parametrize("name", [name for name, client in CLIENTS.items() if client.grouping is not Grouping.HEADER])
def test_a_base_url_names_the_program_of_a_client_without_headers(name: str, place: Callable[[str], Place]) -> None:
    there = place(name)
    before = programs(there.cluster)
    program = "".join(each for each in f"url-{name}" if each.isalnum() or each == "-")
    done = there.run(there.plain_command(), there.plain_environment(program))
    check(there, done)
    assert programs(there.cluster).keys() - before.keys() == {program}
    assert calls(programs(there.cluster)[program]) >= 2


@pytest.mark.parametrize("name", [name for name, client in CLIENTS.items() if client.has_hooks])
def test_instrumented_code_is_one_program_with_its_sub_agents_below(name: str, place: Callable[[str], Place]) -> None:
    there = place(name)
    before = programs(there.cluster)
    own = f"instrumented {name}"
    done = there.run(
        there.command("say hello", "--sub-agent", "--instrument", own), there.plain_environment()
    )  # fmt: skip
    check(there, done)
    program = named(there.cluster, own)
    assert (program["outcome"], calls(program) >= 2) == (COMPLETED, True)
    others = [each for key, each in programs(there.cluster).items() if key not in {*before, program["program_id"]}]
    assert others
    for helper in others:
        assert (helper["parent_program_id"], helper["name"]) == (program["program_id"], "helper")
        assert (helper["outcome"], calls(helper) >= 2) == (COMPLETED, True)


@pytest.mark.parametrize("name", [name for name, client in CLIENTS.items() if client.sub_agents is not None])
def test_sub_agents_of_a_run_are_its_children_and_end_with_it(name: str, place: Callable[[str], Place]) -> None:
    there, sub_agents = place(name), CLIENTS[name].sub_agents
    assert sub_agents is not None
    more, prompt = sub_agents.command.get(there.engine, ()), sub_agents.prompt[there.engine]
    command = there.command(prompt, *more) if prompt else list(more)
    (there.work / "new.txt").write_text("for a review")
    there.run(["git", "init", "--quiet", "."], there.environment())
    before = programs(there.cluster)
    own = f"{name} with sub-agents"
    done = there.run(there.under_run(own, command), there.environment())
    assert done.status == 0, done.out
    program = named(there.cluster, own)
    assert program["outcome"] == COMPLETED
    children = [each for key, each in programs(there.cluster).items() if key not in {*before, program["program_id"]}]
    if sub_agents.name is None:
        # The agent's calls and those of its sub-agent: each calls a tool and answers.
        assert (children, calls(program) >= 4) == ([], True), done.out
        return
    assert children, done.out
    for child in children:
        assert (child["parent_program_id"], child["name"]) == (program["program_id"], sub_agents.name[there.engine])
        assert (child["outcome"], calls(child) >= 2) == (COMPLETED, True), child


@pytest.mark.parametrize("name", CLIENTS)
def test_cancel_ends_a_client_in_its_call_and_it_does_not_go_on(name: str, place: Callable[[str], Place]) -> None:
    there = place(name)
    cluster, own, outer = there.cluster, f"{name} to cancel", f"outer-{there.home.name}"
    with ControlPlane(cluster.addresses["control_plane"], api_key=cluster.key) as client:
        # A run inside a paused program: its first call waits for as long as it takes to cancel it.
        client.open_program("outer", program_id=outer)
        client.pause_program(outer)
        command = there.under_run(own, there.command())
        with there.started(command, there.environment(AGENTSERVING_PROGRAM_ID=outer)) as process:

            def calling() -> list[Any]:
                assert process.poll() is None, process.communicate()
                return [each for each in client.list_programs() if each.name == own and each.calls]

            cluster.wait(lambda: bool(calling()), BOUND_S)
            (program,) = calling()
            assert "is cancelled" in cluster.cli("cancel", program.program_id)
            out, _ = process.communicate(timeout=BOUND_S)
        client.cancel_program(outer)
    assert process.returncode != 0, out
    assert f"{program.program_id} was cancelled" in out
    assert ("open it again, or use another id" in " ".join(out.split())) == (
        there.engine in CLIENTS[name].sees_refusal
    ), out
    after = named(cluster, own)
    assert (after["outcome"], after.get("calls_in_flight", "0")) == (CANCELLED, "0")
