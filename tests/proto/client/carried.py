"""Calls without a network: what a hook would send and hear, written down."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field

from agentserving.programs import context
from agentserving.programs.context import CarriedCall


@dataclass
class Calls:
    """Makes calls of the current program and remembers, by the test's own names, what each came after."""

    parents: dict[str, set[str]] = field(default_factory=dict)
    threads: dict[str, str] = field(default_factory=dict)
    programs: dict[str, str] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, name: str) -> CarriedCall:
        """A call goes out."""
        call = context.begin_call()
        assert call is not None, f"{name} is outside of programs"
        self.programs[name], self.threads[name] = call.program_id, call.thread_id
        self.parents[name] = {self._names[parent] for parent in call.parents}
        return call

    def answer(self, name: str, call: CarriedCall) -> None:
        """Its answer comes, whole."""
        with self._lock:
            call_id = f"{call.program_id}.1.{next(self._numbers)}"
            self._names[call_id] = name
        call.answered(call_id)
        call.end()

    def make(self, name: str) -> None:
        """Both."""
        self.answer(name, self.begin(name))
