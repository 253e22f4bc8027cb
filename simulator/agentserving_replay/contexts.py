"""Turns shared prefixes of calls into paths of segments: a context is split where others branch off. Pure."""

from __future__ import annotations

from bisect import bisect_left

from agentserving_simulator.virtual.context_cache import Segment

from agentserving_replay.traces.trace import Call, Program


def origins(calls: tuple[Call, ...]) -> list[tuple[int, int]]:
    """For each call the call whose own tokens its prompt branches off from (-1: the system prompt), and at which token.

    A call's own tokens are those that it did not inherit: a prompt that repeats less than its predecessor did branches
    off from an earlier call.
    """
    branches: list[tuple[int, int]] = []
    for call in calls:
        owner, shared = call.extends, call.shared_tokens
        while owner >= 0 and shared <= branches[owner][1]:
            owner = branches[owner][0]
        branches.append((owner, shared))
    return branches


class Contexts:
    """Paths of one program's calls, created on demand in any order that respects `extends`."""

    def __init__(self, program: Program, systems: dict[str, Segment], block_size: int) -> None:
        self._block_size = block_size
        self._calls = program.calls
        self._origins = origins(program.calls)
        self._system = self._system_of(program, systems)
        self._cuts: dict[int, set[int]] = {}
        for owner, shared in self._origins:
            self._cuts.setdefault(owner, set()).add(shared)
        self._paths: dict[int, list[Segment]] = {}

    def _system_of(self, program: Program, systems: dict[str, Segment]) -> Segment:
        most = max((call.shared_tokens for call in program.calls if call.extends < 0), default=0)
        known = systems.get(program.name)
        if known is None or known.end != most:
            known = systems[program.name] = Segment(0, most, self._block_size)
        return known

    def path(self, index: int) -> list[Segment]:
        """Segments of a call's prompt and output, root first."""
        known = self._paths.get(index)
        if known is not None:
            return known
        call = self._calls[index]
        owner, shared = self._origins[index]
        before = self._before(owner, shared)
        end = call.prompt_tokens + call.output_tokens
        ends = sorted({*(cut for cut in self._cuts.get(index, ()) if shared < cut < end), end})
        path = [*before, *(Segment(a, b, self._block_size) for a, b in zip([shared, *ends], ends, strict=False))]
        self._paths[index] = path
        return path

    def _before(self, owner: int, shared: int) -> list[Segment]:
        if owner < 0:
            return [self._system] if shared and shared == self._system.end else []
        path = self.path(owner)
        return path[: bisect_left(path, shared, key=lambda segment: segment.end) + 1]
