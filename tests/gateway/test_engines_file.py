"""The engines as Envoy reads them, and as the next process finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
from agentserving.contract.ids import EngineId
from agentserving_gateway.engines import Engine
from agentserving_gateway.engines_file import EnginesFile, rendered
from hypothesis import given
from hypothesis import strategies as st

HOSTS = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda ip: f"[{ip}]"))
ADDRESSES = st.builds(lambda host, port: f"{host}:{port}", HOSTS, st.integers(1, 65535))
ENGINES = st.lists(
    st.builds(
        Engine,
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).map(EngineId),
        ADDRESSES,
        st.booleans(),
        st.frozensets(st.text(st.characters(codec="utf-8"), max_size=20), max_size=3),
    ),
    max_size=6,
)
E0 = Engine(EngineId("e0"), "127.0.0.1:8000")
E1 = Engine(EngineId("e1"), "[::1]:8000", False, frozenset({"m"}))


@given(ENGINES)
def test_the_next_process_finds_what_the_last_one_wrote(
    tmp_path_factory: pytest.TempPathFactory, engines: list[Engine]
) -> None:
    path = tmp_path_factory.mktemp("run") / "engines" / "eds.json"
    EnginesFile(path).save(engines, even_empty=True)
    assert EnginesFile(path).load() == engines


@pytest.mark.parametrize(
    "bad", ["engine-0:8000", "127.0.0.1", "127.0.0.1:0x", "::1:80", "", "300.1.1.1:80", "[::1]:99999"]
)
def test_an_address_that_envoy_would_refuse_does_not_spoil_the_others(bad: str, tmp_path: Path) -> None:
    document = rendered([E0, Engine(EngineId("bad"), bad), E1])
    endpoints = document["resources"][0]["endpoints"][0]["lb_endpoints"]
    assert [each["metadata"]["filter_metadata"]["agentserving"]["engine"] for each in endpoints] == ["e0", "e1"]


def test_an_engine_that_is_not_ready_stays_and_is_marked() -> None:
    endpoints = rendered([E0, E1])["resources"][0]["endpoints"][0]["lb_endpoints"]
    assert [each["health_status"] for each in endpoints] == ["HEALTHY", "UNHEALTHY"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"resources": []}', '{"resources": [{"endpoints": [{"lb_endpoints": [{}]}]}]}']
)
def test_a_file_that_cannot_be_read_is_replaced_by_an_empty_one_that_envoy_can_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "engines" / "eds.json"
    path.parent.mkdir()
    path.write_text(text)
    assert EnginesFile(path).load() == []
    assert EnginesFile(path).load() == []
    assert "ClusterLoadAssignment" in path.read_text()


def test_an_empty_set_does_not_replace_the_last_known_engines(tmp_path: Path) -> None:
    path = tmp_path / "engines" / "eds.json"
    file = EnginesFile(path)
    file.save([E0])
    file.save([])
    assert file.has(E0.address)
    assert EnginesFile(path).load() == [E0]


def test_nothing_but_the_file_appears_in_the_watched_folder(tmp_path: Path) -> None:
    path = tmp_path / "engines" / "eds.json"
    EnginesFile(path).save([E0])
    assert [each.name for each in path.parent.iterdir()] == ["eds.json"]


def test_a_file_that_cannot_be_written_leaves_the_process_running(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("in the way")
    file = EnginesFile(tmp_path / "engines" / "eds.json")
    file.save([E0])
    assert not file.has(E0.address)
