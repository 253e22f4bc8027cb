"""A gateway remembers its engines over a restart, its own and the control plane's."""

from __future__ import annotations

from pathlib import Path

import pytest
from agentserving.transport.leader_channel import LeaderChannel
from agentserving.v1 import types_pb2
from agentserving_gateway.admission import Admission
from agentserving_gateway.errors import HttpError
from agentserving_gateway.identity import Identity
from agentserving_gateway.known_engines import KnownEngines
from gateway.gateway_rig import until
from support.served_plane import PlayedEngine, ServedPlane


def test_what_was_kept_is_found_again_and_nothing_else(tmp_path: Path) -> None:
    KnownEngines(tmp_path / "new").keep([types_pb2.Engine(engine_id="e0", address="h:1", boot_id="b")])
    (found,) = KnownEngines(tmp_path / "new").load()
    assert (found.engine_id, found.address, found.boot_id) == ("e0", "h:1", "")


def test_no_engine_at_all_does_not_replace_those_that_were(tmp_path: Path) -> None:
    known = KnownEngines(tmp_path)
    known.keep([types_pb2.Engine(engine_id="e0", address="h:1")])
    known.keep([])
    assert len(known.load()) == 1


@pytest.mark.parametrize("content", ["", "{", "7", "[1]", '[["a"]]', '{"a": 1}'])
def test_a_torn_file_is_no_engine_and_no_crash(tmp_path: Path, content: str) -> None:
    (tmp_path / "engines.json").write_text(content)
    assert KnownEngines(tmp_path).load() == []


def test_a_place_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    KnownEngines(tmp_path / "file").keep([types_pb2.Engine(engine_id="e0", address="h:1")])
    assert KnownEngines(None).load() == []


async def test_a_new_leader_that_has_no_engine_yet_does_not_make_the_old_ones_forgotten() -> None:
    async with ServedPlane() as old, ServedPlane() as new:
        await PlayedEngine(old.engine_service).hello("e0")
        admission = Admission(LeaderChannel(f"127.0.0.1:{old.port},127.0.0.1:{new.port}"))
        admission.start()
        try:
            await until(lambda: len(admission.engines) == 1)
            await old.server.stop(0)
            await until(lambda: not admission.connected)
            await until(lambda: admission.connected)
            assert not new.plane.engines.engines
            await new.server.stop(0)
            await until(lambda: not admission.connected)
            admitted = await admission.admit(Identity("p"), "default", 1)
            assert (admitted.engine_id, admitted.engine_address, admitted.ticket) == ("e0", "127.0.0.1:9", "")
        finally:
            await admission.close()


async def test_a_gateway_without_engines_takes_calls_once_a_leader_has_said_that_there_are_none() -> None:
    async with ServedPlane() as served:
        admission = Admission(LeaderChannel(f"127.0.0.1:{served.port}"))
        admission.start()
        try:
            assert not admission.ready
            await until(lambda: admission.connected)
            assert not admission.ready
            await until(lambda: admission.ready)
            with pytest.raises(HttpError, match="none has attached"):
                await admission.admit(Identity("p"), "default", 1)
            await served.server.stop(0)
            await until(lambda: not admission.ready)
        finally:
            await admission.close()
