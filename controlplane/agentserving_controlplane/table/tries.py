"""A call that several engines may run, one after the other. Pure.

The sender of a call tries the engines of its ticket in order, without asking: the next one when an engine fails before
its answer begins. Each engine that sees the ticket reports its own try. One try is charged, that of the engine which
ends the call:

- COMPLETED from any named engine ends the call.
- CANCELLED by the program's owner, or after tokens have come, ends the call.
- Another final outcome ends only that engine's try, as long as a named engine remains that may run the call.
- A report of an engine means that those named before it have failed, whether or not they ever report. The call moves to
  the reporter. What a try that is over still reports changes nothing, unless it reports COMPLETED.

The call's counters are those of the try on `engine_id`. A call whose ticket names one engine has no `engines`, and its
only try is the call.
"""

from __future__ import annotations

from collections.abc import Iterable

from agentserving.contract.ids import EngineId

from agentserving_controlplane.table.reports import CallReport
from agentserving_controlplane.table.rows import CallRow
from agentserving_controlplane.table.states import Outcome

# Fallback engines of one call.
MAX_FALLBACKS = 2


def named(call: CallRow) -> Iterable[EngineId]:
    """Engines that may run the call."""
    return call.engines or (call.engine_id,)


def is_over(call: CallRow) -> bool:
    """True when the newest try is known to have failed: another engine may begin, or none was left to."""
    return call.engine_id in call.failed


def none_is_left(call: CallRow) -> bool:
    """True when every engine has said that it failed. One that was passed over may not have been tried yet."""
    return all(call.failed.get(engine_id) for engine_id in call.engines)


def is_stale(call: CallRow, report: CallReport) -> bool:
    """True for a report that says nothing about the try that may end the call."""
    if not call.engines or report.outcome is Outcome.COMPLETED:
        return False
    if report.engine_id not in call.engines:
        return True
    ended = call.failed.get(report.engine_id)
    # An engine that was passed over goes on, and the later one has failed: it was not tried in the order of the ticket.
    return ended is not None and (bool(ended) or not is_over(call))


def passed_over(call: CallRow, engine_id: EngineId) -> list[EngineId]:
    """Engines that must have failed, and are not known to, if `engine_id` has the call."""
    if engine_id == call.engine_id or engine_id not in call.engines:
        return []
    before = call.engines[: call.engines.index(engine_id)]
    return [each for each in before if call.failed.get(each) not in (Outcome.NONE, Outcome.FAILED)]


def has_moved(call: CallRow, engine_id: EngineId) -> bool:
    """True when another engine than the call's is known to have answered it."""
    if engine_id == call.engine_id or engine_id not in call.engines:
        return False
    return is_over(call) or call.engines.index(engine_id) > call.engines.index(call.engine_id)


def begin(call: CallRow, engine_id: EngineId) -> None:
    """The call's newest try is on `engine_id`: counters of the try before are dropped."""
    for each in call.engines[: call.engines.index(engine_id)]:
        call.failed[each] = Outcome.FAILED if call.failed.get(each) else Outcome.NONE
    call.failed.pop(engine_id, None)
    call.boot_id = ""
    call.service_us = call.wait_us = call.prompt_tokens = call.cached_tokens = call.output_tokens = 0
    call.preemptions = call.level = call.prefix_miss = call.common_tokens = call.arrive_us = 0
    call.phases = []


def adopt(call: CallRow, report: CallReport) -> None:
    """The call is known from this report alone: its ticket named these engines."""
    engines = report.engine_ids[: MAX_FALLBACKS + 1]
    if report.engine_id in engines and len(engines) > 1:
        call.engines = list(engines)
        call.failed = dict.fromkeys(engines[: engines.index(report.engine_id)], Outcome.NONE)


def ends(call: CallRow, report: CallReport, *, program_cancelled: bool) -> bool:
    """True when an engine's final report ends the call, not only the try there.

    A call that was cancelled is tried nowhere else: by its owner, or by a client that leaves while tokens come.
    """
    if report.outcome is Outcome.COMPLETED:
        return True
    if report.outcome is Outcome.CANCELLED and (program_cancelled or report.output_tokens):
        return True
    return fail(call, report.engine_id, report.outcome)


def fail(call: CallRow, engine_id: EngineId, outcome: Outcome) -> bool:
    """The try on an engine has ended without an answer; True when the call ends with it."""
    if not call.engines:
        return True
    call.failed[engine_id] = outcome
    # Once the exchange has ended in failure, no other engine is tried.
    return none_is_left(call) or call.exchange not in (Outcome.NONE, Outcome.COMPLETED)
