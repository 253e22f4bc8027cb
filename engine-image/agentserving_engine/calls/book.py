"""Turns vLLM's requests into calls: tickets in, records out. Time is an argument.

One call may be several requests (n > 1, several prompts, turns of /v1/responses, beams): they share one record, charged
for each of them that ran in a step. A ticket is good for the requests of one HTTP request. Requests without a valid one
share an account, and run last; where tickets are required, they are refused instead.

vLLM's front end makes some requests only when earlier ones have ended: each token of a beam search is a new set of
requests. The record of such a call is delayed for `BEAM_GAP_US`, in which the next request continues the call. A later
request of a call that was already reported is charged to the program's account on this engine, but not reported: a
terminal record is final.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection
from dataclasses import dataclass, field

from agentserving.contract.accounting import charge_call
from agentserving.contract.channel import CallRecord
from agentserving.contract.ids import CallId, ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import Accounting
from agentserving.contract.service_class import ServiceClass
from agentserving.contract.ticket import InvalidTicketError, Ticket

from agentserving_engine.calls.accounts import Accounts
from agentserving_engine.calls.ended import EndedCalls
from agentserving_engine.calls.outbox import Outbox
from agentserving_engine.calls.rejections import Rejections
from agentserving_engine.calls.tickets import TicketCheck, Unticketed, split
from agentserving_engine.calls.timeline import Timeline
from agentserving_engine.policy import CallFacts, CallStats

# The front end needs milliseconds between the requests of two tokens of a beam search.
BEAM_GAP_US = 500_000

# What vLLM adds to a request id: the index of a child, prompt or turn, a random tail, and a batch and index of a beam.
_BEAM = re.compile(r"-[0-9a-f]{16,32}-beam-\d+(?=-[0-9a-f]{8}$|$)")
_DECORATION = re.compile(r"^\d+_|(?:[-_]\d+)?-[0-9a-f]{8}$")


def base_id(request_id: str) -> str:
    """What the ids of all requests of one HTTP request have in common."""
    return _DECORATION.sub("", _DECORATION.sub("", _BEAM.sub("", request_id)))


@dataclass(slots=True, kw_only=True)
class OpenCall:
    """A managed call that has arrived and not ended."""

    record: CallRecord
    base_id: str
    program: ProgramKey
    program_arrival_us: int = 0
    class_name: str = ""
    service_class: ServiceClass = ServiceClass.STANDARD
    # Each live request, with the service that the call had received when it arrived.
    members: dict[str, int] = field(default_factory=dict)
    # Output tokens of each live request that are counted already.
    tokens: dict[str, int] = field(default_factory=dict)
    # Service and wait that are in the program's account already, microseconds.
    settled_service_us: int = 0
    settled_wait_us: int = 0
    # Wait of requests that ended before the present ones arrived.
    earlier_wait_us: int = 0
    # When the last request of a beam search ended.
    between_since_us: int = 0
    # Where its time goes.
    timeline: Timeline = field(default_factory=lambda: Timeline(0))
    # Its terminal record was sent before: these are late requests, which are charged but not reported.
    reported: bool = False


class CallBook:
    """Calls of one engine."""

    def __init__(self, check: TicketCheck, outbox: Outbox | None = None) -> None:
        self._check = check
        self._open: dict[CallId, OpenCall] = {}
        # Beam searches between the requests of two tokens, the longest waiting first; their records are delayed.
        self._between: dict[CallId, OpenCall] = {}
        self._by_request: dict[str, OpenCall] = {}
        # Open calls with several requests at the same time.
        self._several: dict[CallId, OpenCall] = {}
        # Requests without a call, with the account that they share; and those that must not run.
        self._unmanaged: dict[str, ProgramKey] = {}
        self._refused: list[str] = []
        self._ended = EndedCalls()
        self.accounts = Accounts()
        self.outbox = outbox if outbox is not None else Outbox()
        self.rejections = Rejections()
        # Requests without a valid ticket since boot.
        self.unmanaged_calls = 0

    # -- arrivals ------------------------------------------------------------------------------------------------

    def arrive(
        self, request_id: str, session_id: str | None, now_us: int, unix_s: float, accounting: Accounting
    ) -> CallFacts:
        """The facts that the policy needs about a new request. `session_id` is the ticket, if there is one."""
        call = self._call_for(request_id, session_id, now_us, unix_s)
        if isinstance(call, OpenCall):
            call.members[request_id] = call.record.service_us
            self._by_request[request_id] = call
            if len(call.members) > 1:
                self._several[CallId(call.record.call_id)] = call
        else:
            self.unmanaged_calls += 1
            self._unmanaged[request_id] = unmanaged_account(call or Tenant(""))
            if call is None and self._check.unticketed is Unticketed.REFUSE:
                self._refused.append(request_id)
        return self.facts(request_id, accounting)

    def take_refused(self) -> list[str]:
        """Requests that have arrived without a valid ticket although one is required: the caller aborts them."""
        if not self._refused:
            return []
        refused, self._refused = self._refused, []
        return refused

    def facts(self, request_id: str, accounting: Accounting) -> CallFacts:
        """The facts about a request as it arrived."""
        call = self._by_request.get(request_id)
        if call is None:
            program = self._unmanaged.get(request_id, unmanaged_account(Tenant("")))
            # Waits of others in the account do not count: a flood would promote itself.
            return CallFacts(
                request_id, program, attained_service_us=self.accounts.of(program).attained_us, managed=False
            )
        account = self.accounts.of(call.program)
        # What the call received before this request counts as well: a beam search does not start over at each token.
        before_us = call.members[request_id]
        at_admission_us = call.record.attained_service_us
        match accounting:
            case Accounting.NONE:
                attained_us = before_us
            case Accounting.CRITICAL_PATH:
                attained_us = max(account.attained_us, at_admission_us + before_us)
            case Accounting.SUM:
                unsettled_us = max(0, before_us - call.settled_service_us)
                attained_us = max(account.attained_us, at_admission_us) + unsettled_us
        return CallFacts(
            request_id,
            call.program,
            attained_service_us=attained_us,
            program_wait_us=account.wait_us,
            program_arrival_us=call.program_arrival_us,
            class_name=call.class_name,
            service_class=call.service_class,
        )

    def _call_for(
        self, request_id: str, session_id: str | None, now_us: int, unix_s: float
    ) -> OpenCall | Tenant | None:
        """The call; the tenant alone, if a gateway vouches for it; None without a valid ticket."""
        if not session_id or not self._check.has_keys:
            return None
        text, exchange = split(session_id)
        try:
            ticket, managed = self._check.read(text, unix_s)
        except InvalidTicketError as error:
            self.rejections.add(error.reason, now_us, expired_for_s=error.expired_for_s)
            return None
        base, call_id = exchange or base_id(request_id), CallId(ticket.call_id)
        if not managed:
            if (self._ended.base_id(call_id) or base) != base:
                self.rejections.add("replayed", now_us)
                return None
            self._ended.add(call_id, base)
            return Tenant(ticket.tenant)
        call = self._open.get(call_id) or self._between.get(call_id)
        ended = None if call is not None else self._ended.base_id(call_id)
        if (call.base_id if call is not None else ended or base) != base:
            self.rejections.add("replayed", now_us)
            return None
        if call is not None:
            if self._between.pop(call_id, None) is not None:
                self._resume(call)
            self._open[call_id] = call
            return call
        call = self._open[call_id] = _opened(ticket, base)
        call.timeline, call.record.arrive_unix_us = Timeline(now_us), int(unix_s * 1e6)
        call.reported = ended is not None
        self.accounts.raise_to(call.program, 0, ticket.wait_us)
        return call

    def _resume(self, call: OpenCall) -> None:
        """The next request of a beam search has arrived."""
        record = call.record
        if self.outbox.withdraw((record.call_id, record.attempt)):
            record.outcome = ""
            call.earlier_wait_us = record.wait_us
        else:
            # The record was sent while this request was on its way.
            self._ended.add(CallId(record.call_id), call.base_id)
            call.reported = True
            call.record = copy.copy(record)

    # -- queries -------------------------------------------------------------------------------------------------

    def call_of(self, request_id: str) -> OpenCall | None:
        """The managed call of a request of the engine, if it has one."""
        return self._by_request.get(request_id)

    @property
    def request_ids(self) -> list[str]:
        """Requests of managed calls that are in the engine."""
        return list(self._by_request)

    @property
    def open_calls(self) -> int:
        """Calls with requests in the engine."""
        return len(self._open)

    def requests_of(self, call_id: CallId) -> list[str]:
        """Requests of a call that are in the engine."""
        call = self._open.get(call_id)
        return sorted(call.members) if call else []

    def rotate(self, limit: int) -> list[OpenCall]:
        """Up to `limit` open calls; successive calls of this method go through all of them in turn."""
        chosen = [call_id for call_id, _ in zip(self._open, range(limit), strict=False)]
        calls = []
        for call_id in chosen:
            call = self._open[call_id] = self._open.pop(call_id)
            if not call.reported:
                calls.append(call)
        return calls

    # -- service and ends ----------------------------------------------------------------------------------------

    def charge(self, request_id: str, dt_us: int) -> None:
        """The request took part in a step of `dt_us`: its call has received that once more."""
        call = self._by_request.get(request_id)
        if call is not None:
            call.record.service_us += dt_us

    def together(self, request_ids: Collection[str]) -> list[list[str]]:
        """Those of the requests that belong to one call, for each call that has two or more of them."""
        if not self._several:
            return []
        groups = ([key for key in call.members if key in request_ids] for call in self._several.values())
        return [group for group in groups if len(group) > 1]

    def observe(self, call: OpenCall, stats: CallStats) -> None:
        """Takes over what the queue knows about one of the call's requests; the call reports its worst one."""
        record = call.record
        record.wait_us = max(record.wait_us, call.earlier_wait_us + stats.wait_us)
        record.level = stats.level
        record.running = stats.running
        record.preemptions = max(record.preemptions, stats.preemptions)

    def end(
        self, request_id: str, stats: CallStats | None, outcome: str, now_us: int, accounting: Accounting
    ) -> CallRecord | None:
        """A request has left the engine. Returns the terminal record if it is final now."""
        call = self._by_request.pop(request_id, None)
        if call is None:
            self._end_unmanaged(request_id, stats)
            return None
        del call.members[request_id]
        if len(call.members) < 2:
            self._several.pop(CallId(call.record.call_id), None)
        call.tokens.pop(request_id, None)
        record = call.record
        if stats is not None:
            self.observe(call, stats)
        # One request that completed makes the call complete: a failure is one only if nothing was delivered.
        if record.outcome != "completed":
            record.outcome = outcome
        if call.members:
            return None
        record.running = False
        record.phases = call.timeline.past
        self._settle(call, accounting)
        del self._open[CallId(record.call_id)]
        if call.reported:
            return None
        if self.outbox.keeps and outcome == "completed" and _BEAM.search(request_id):
            self._between[CallId(record.call_id)] = call
            call.between_since_us = now_us
            self.outbox.delay(record, now_us + BEAM_GAP_US)
            return None
        self._ended.add(CallId(record.call_id), call.base_id)
        self.outbox.add(record)
        return record

    def _end_unmanaged(self, request_id: str, stats: CallStats | None) -> None:
        account = self._unmanaged.pop(request_id, None)
        if account is not None and stats is not None:
            self.accounts.raise_to(account, self.accounts.of(account).attained_us + stats.service_us, 0)

    def sweep(self, now_us: int) -> None:
        """Ends the beam searches whose next request did not come in time; their records are sent by then."""
        while self._between:
            call_id, call = next(iter(self._between.items()))
            if now_us - call.between_since_us < 2 * BEAM_GAP_US:
                return
            del self._between[call_id]
            self._ended.add(call_id, call.base_id)

    def _settle(self, call: OpenCall, accounting: Accounting) -> None:
        """Puts the call's service and wait into its program's account, once."""
        record = call.record
        known = self.accounts.of(call.program)
        at_admission_us = record.attained_service_us + call.settled_service_us
        service_us, wait_us = record.service_us - call.settled_service_us, record.wait_us - call.settled_wait_us
        before_us = max(known.attained_us, record.attained_service_us)
        after_us = charge_call(accounting, before_us, at_admission_us, service_us)
        self.accounts.raise_to(call.program, after_us, known.wait_us + wait_us)
        call.settled_service_us, call.settled_wait_us = record.service_us, record.wait_us


def unmanaged_account(tenant: Tenant) -> ProgramKey:
    """The account of all calls without an account: of a tenant that a gateway names, or of everybody else."""
    return ProgramKey(tenant, ProgramId("\x00unmanaged"))


def _opened(ticket: Ticket, base: str) -> OpenCall:
    record = CallRecord(
        call_id=ticket.call_id,
        attempt=ticket.attempt,
        program_id=ticket.program_id,
        root_program_id=ticket.root_program_id,
        tenant=ticket.tenant,
        thread_id=ticket.thread_id,
        attained_service_us=ticket.attained_service_us,
        engine_ids=ticket.engine_ids if ticket.fallbacks else (),
    )
    return OpenCall(
        record=record,
        base_id=base,
        program=ProgramKey(Tenant(ticket.tenant), ProgramId(ticket.root_program_id)),
        program_arrival_us=ticket.program_arrival_us,
        class_name=ticket.class_name,
        service_class=ServiceClass(ticket.service_class) or ServiceClass.STANDARD,
    )


def copy_record(record: CallRecord) -> CallRecord:
    """A record that will not change any more."""
    return copy.copy(record)
