"""Lists of programs with many threads: pages are bounded in bytes, and others are served while one is made."""

from __future__ import annotations

import asyncio

import pytest
from agentserving.v1 import program_service_pb2 as pb
from agentserving_controlplane.api import program
from support.served_plane import ServedPlane

PROGRAMS, THREADS = 6, 60


async def filled(plane: ServedPlane) -> list[str]:
    """Ids of programs with THREADS threads each, in order."""
    await plane.attach(capabilities={"max_num_seqs": 1000})
    for number in range(PROGRAMS):
        for thread in range(THREADS):
            await plane.admit(f"p{number}", thread_id=f"{thread}-" + "x" * 100, implicit=True)
    return [f"p{number}" for number in range(PROGRAMS)]


async def test_a_page_ends_before_it_is_too_large_and_the_next_one_goes_on_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with ServedPlane() as plane:
        ids = await filled(plane)
        one = (await plane.get("p0")).ByteSize()
        monkeypatch.setattr(program, "PAGE_BYTES", 2 * one)
        seen, token, pages = list[str](), "", 0
        while pages == 0 or token:
            page = await plane.programs.ListPrograms(pb.ListProgramsRequest(page_size=1000, page_token=token))
            assert 1 <= len(page.programs) <= 3
            seen += [each.program_id for each in page.programs]
            token, pages = page.next_page_token, pages + 1
        assert seen == ids
        assert pages > 1


async def test_others_are_served_between_two_programs_of_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "SLICE_S", 0.0)
    made: list[int] = []
    turns = 0
    convert = program.program_to_message

    def counted(view: program.ProgramView) -> object:
        made.append(turns)
        return convert(view)

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with ServedPlane() as plane:
        await filled(plane)
        # The server runs on this loop, so that the turns of another task are those that its other callers get.
        monkeypatch.setattr(program, "program_to_message", counted)
        task = asyncio.create_task(others())
        await plane.programs.ListPrograms(pb.ListProgramsRequest(page_size=1000))
        task.cancel()
    assert len(made) == PROGRAMS
    assert len(set(made)) == PROGRAMS, "a turn of the loop between each two"
