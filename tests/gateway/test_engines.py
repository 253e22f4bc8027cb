"""Which engine takes a request that the leader does not place."""

from __future__ import annotations

from agentserving.contract.ids import EngineId
from agentserving_gateway.engines import AVOID_S, Engine, Engines

E0, E1, E2 = (EngineId(f"e{index}") for index in range(3))


def engine(engine_id: EngineId, *, is_ready: bool = True, models: tuple[str, ...] = ()) -> Engine:
    return Engine(engine_id, f"{engine_id}:1", is_ready, frozenset(models))


def test_ready_engines_are_chosen_in_turn_and_others_not_at_all() -> None:
    engines = Engines([engine(E0), engine(E1, is_ready=False), engine(E2)])
    chosen = [engines.in_turn(0.0) for _ in range(6)]
    assert sorted(each.engine_id for each in chosen if each) == [E0, E0, E0, E2, E2, E2]


def test_no_ready_engine_is_no_choice() -> None:
    assert Engines([engine(E0, is_ready=False)]).in_turn(0.0) is None


def test_an_engine_that_failed_a_moment_ago_is_avoided_until_it_answers_or_time_passes() -> None:
    engines = Engines([engine(E0), engine(E1)])
    engines.avoid(E0, 10.0)
    assert {engines.in_turn(10.0 + AVOID_S / 2).engine_id for _ in range(4)} == {E1}  # type: ignore[union-attr]
    assert {engines.in_turn(10.1 + AVOID_S).engine_id for _ in range(4)} == {E0, E1}  # type: ignore[union-attr]
    engines.avoid(E0, 20.0)
    engines.trust(E0)
    assert engines.avoided(20.0) == frozenset()


def test_an_avoided_engine_is_better_than_none() -> None:
    engines = Engines([engine(E0)])
    engines.avoid(E0, 0.0)
    for chosen in (engines.in_turn(1.0), engines.by_program("p", 1.0)):
        assert chosen is not None
        assert chosen.engine_id == E0


def test_a_request_for_an_adapter_goes_to_the_engine_that_has_it() -> None:
    engines = Engines([engine(E0, models=("base",)), engine(E1, models=("base", "sql"))])
    assert {engines.in_turn(0.0, "sql").engine_id for _ in range(4)} == {E1}  # type: ignore[union-attr]
    assert {engines.in_turn(0.0, "unknown").engine_id for _ in range(4)} == {E0, E1}  # type: ignore[union-attr]


def test_a_program_stays_on_its_engine_while_that_one_is_there() -> None:
    engines = Engines([engine(E0), engine(E1), engine(E2)])
    homes = {f"p{index}": engines.by_program(f"p{index}", 0.0) for index in range(30)}
    assert len({each.engine_id for each in homes.values() if each}) == 3
    gone = {E1}
    for program, home in homes.items():
        chosen = engines.by_program(program, 0.0, exclude=gone)
        assert chosen is not None
        assert home is not None
        assert chosen == home or home.engine_id in gone


def test_an_empty_set_is_believed_once_the_leader_has_settled() -> None:
    engines = Engines([engine(E0)])
    engines.replace([])
    engines.replace([])
    assert [each.engine_id for each in engines.known(settled=False)] == [E0]
    assert engines.known(settled=True) == []
    assert engines.in_turn(0.0, settled=True) is None
