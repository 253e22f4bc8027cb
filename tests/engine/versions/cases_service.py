"""Classes of service on the real scheduler: tickets carry them, and they stand above what programs have received."""

from __future__ import annotations

from agentserving.contract.policy import FCFS, PLAS
from agentserving.contract.service_class import ServiceClass
from engine.versions.rig import Engine, Options, Pipeline

HEAVY = 10**9  # microseconds that put a program into the last level


def case_an_interactive_call_displaces_batch_however_much_its_program_has_received(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=2))
    engine.set_policy(PLAS)
    batch = [engine.send(program=f"b{i}", max_tokens=60, service=ServiceClass.BATCH) for i in range(3)]
    engine.run(steps=4)
    chat = engine.send(program="chat", max_tokens=3, attained_us=HEAVY, service=ServiceClass.INTERACTIVE)
    engine.run(until=lambda: engine.sent[chat].finish_reason is not None)
    assert engine.session.load.preemptions_proactive == 1
    assert all(engine.sent[key].finish_reason is None for key in batch)
    engine.finish()
    engine.close()


def case_waiting_calls_start_by_their_class_under_fcfs_as_well(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, Options(slots=1))
    engine.set_policy(FCFS)
    first = engine.send(program="first", max_tokens=20)
    engine.run(steps=3)
    waiting = [
        engine.send(program=kind.label, max_tokens=20, service=kind)
        for kind in (ServiceClass.BATCH, ServiceClass.STANDARD, ServiceClass.INTERACTIVE)
    ]
    ended: list[str] = []

    def all_have_ended() -> bool:
        ended.extend(
            key for key in (first, *waiting) if key not in ended and engine.sent[key].finish_reason is not None
        )
        return len(ended) == 4

    engine.run(until=all_have_ended)
    assert ended == [first, *reversed(waiting)]
    assert engine.session.load.preemptions_proactive == 0, "fcfs preempts nothing"
    engine.finish()
    engine.close()
