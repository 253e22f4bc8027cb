"""One rank of a data-parallel engine, as vLLM starts it: its configuration does not say that there are others."""

from __future__ import annotations

from agentserving_engine.boot import boot_of_parent, read_boot
from agentserving_engine.conformance import UnsupportedEngineError
from engine.versions.rig import Engine, Options, Pipeline


def case_each_rank_has_a_channel_and_all_have_one_boot(pipeline: Pipeline) -> None:
    for rank in (0, 1):
        engine = Engine(pipeline, Options(rank=rank, ranks=2))
        channel = engine.session.channel
        assert channel._path.name == f"rank{rank}.sock"
        assert channel._path.exists()
        assert (channel._hello.boot_id, channel._hello.data_parallel_size) == (boot_of_parent(), 2)
        # Whoever accepts requests reads the boot of rank 0, which is that of all.
        assert read_boot(channel._path.parent) == ("" if rank else boot_of_parent())
        engine.send(program="p", max_tokens=5)
        engine.finish()
        engine.close()


def case_a_rank_beyond_those_announced_is_refused(pipeline: Pipeline) -> None:
    assert "AGENTSERVING_RANKS, which is 1" in refusal(pipeline, Options(rank=1))


def refusal(pipeline: Pipeline, options: Options) -> str:
    """Why an engine does not start."""
    try:
        Engine(pipeline, options)
    except UnsupportedEngineError as error:
        return str(error)
    raise AssertionError("the engine has started")
