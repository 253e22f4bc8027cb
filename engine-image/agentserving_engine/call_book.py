"""Which request belongs to which call, and what each call has received.

vLLM knows requests; we count calls. One call may be several requests (n > 1, several prompts, turns of /v1/responses):
they share one record, charged once for each step in which any of them ran. A request without a ticket is a program of
its own; so is one whose ticket is forged, expired or replayed after its call has ended. Pure: time is an argument.
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agentserving.contract.accounting import charge_call
from agentserving.contract.channel import CallRecord
from agentserving.contract.policy import Accounting
from agentserving.contract.ticket import InvalidTicketError, verify

from agentserving_engine.policy import CallFacts, CallStats

# Accounts of programs remembered after their last call here, least recently used forgotten first.
MAX_KNOWN_PROGRAMS = 65_536
# Ended calls remembered to tell a replayed ticket; at least as many as a ticket's lifetime lets end.
MAX_ENDED_CALLS = 262_144
# A sibling request of the same call may come this long after the others have ended (n > 1, max_tokens 1).
SIBLING_WINDOW_US = 2_000_000
# Terminal records kept for a sidecar that is away.
MAX_UNACKED = 262_144

_DECORATION = re.compile(r"^\d+_|(?:[-_]\d+)?-[0-9a-f]{8}$")


@dataclass(slots=True)
class OpenCall:
    """A managed call with requests in the engine."""

    record: CallRecord
    base_id: str
    program_arrival_us: int = 0
    application: str = ""
    members: set[str] = field(default_factory=set)
    charged_step: int = -1
    # Output tokens of each live member, as far as they were seen.
    tokens: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Totals:
    """Counters since boot."""

    unmanaged_calls: int = 0
    rejected_tickets: int = 0
    dropped_records: int = 0


class CallBook:
    """Tickets in, records out."""

    def __init__(self, engine_id: str, keys: Callable[[], Sequence[bytes]] | None) -> None:
        """`keys` gives those that tickets may be signed by; None = there are no tickets."""
        self._engine_id = engine_id
        self._keys = keys
        self._open: dict[str, OpenCall] = {}
        self._by_request: dict[str, OpenCall] = {}
        self._ended: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._accounts: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._rotation: deque[str] = deque()
        self.unacked: OrderedDict[tuple[str, int], CallRecord] = OrderedDict()
        self.totals = Totals()

    def arrive(
        self, request_id: str, session_id: str | None, now_us: int, unix_s: float, accounting: Accounting
    ) -> CallFacts:
        """The facts the policy needs of a new request."""
        call = self._find_call(request_id, session_id, now_us, unix_s)
        if call is None:
            self.totals.unmanaged_calls += 1
        else:
            call.members.add(request_id)
            self._by_request[request_id] = call
        return self.facts(request_id, accounting)

    def facts(self, request_id: str, accounting: Accounting) -> CallFacts:
        """What the policy needs of a request that has arrived; one without a call is a program of its own."""
        call = self._by_request.get(request_id)
        if call is None:
            return CallFacts(request_id, f"\x00{request_id}", managed=False)
        record = call.record
        attained, wait = self._accounts.get(record.root_program_id, (0, 0))
        attained = max(attained, record.attained_service_us) if accounting is not Accounting.NONE else 0
        return CallFacts(
            request_id, record.root_program_id, attained, wait, call.program_arrival_us, application=call.application
        )

    def _find_call(self, request_id: str, session_id: str | None, now_us: int, unix_s: float) -> OpenCall | None:
        if not session_id or self._keys is None:
            return None
        try:
            ticket = verify(session_id, *self._keys(), engine_id=self._engine_id, now_unix_s=unix_s)
        except InvalidTicketError:
            self.totals.rejected_tickets += 1
            return None
        base_id = _DECORATION.sub("", _DECORATION.sub("", request_id))
        call = self._open.get(ticket.call_id)
        if call is not None:
            if call.base_id == base_id:
                return call
            self.totals.rejected_tickets += 1
            return None
        ended = self._ended.get(ticket.call_id)
        if ended is not None:
            # A late sibling is served as a stranger too: its call has been reported, and a report is final.
            if ended[0] != base_id or now_us - ended[1] > SIBLING_WINDOW_US:
                self.totals.rejected_tickets += 1
            return None
        record = CallRecord(
            ticket.call_id,
            ticket.attempt,
            ticket.program_id,
            ticket.root_program_id,
            ticket.tenant,
            ticket.thread_id,
            ticket.attained_service_us,
        )
        call = self._open[ticket.call_id] = OpenCall(record, base_id, ticket.program_arrival_us, ticket.application)
        self._rotation.append(ticket.call_id)
        self.learn(ticket.root_program_id, 0, ticket.wait_us)
        return call

    def learn(self, root: str, attained_us: int, wait_us: int) -> None:
        """An account as the table has it; never lowers what is known."""
        known = self._accounts.get(root, (0, 0))
        self._accounts[root] = (max(known[0], attained_us), max(known[1], wait_us))
        self._accounts.move_to_end(root)
        if len(self._accounts) > MAX_KNOWN_PROGRAMS:
            self._accounts.popitem(last=False)

    def call_of(self, request_id: str) -> OpenCall | None:
        """The managed call of a request."""
        return self._by_request.get(request_id)

    @property
    def request_ids(self) -> list[str]:
        """Requests of managed calls that are in the engine."""
        return list(self._by_request)

    def requests_of(self, call_id: str) -> list[str]:
        """Requests of a call that are in the engine."""
        call = self._open.get(call_id)
        return sorted(call.members) if call else []

    def charge(self, request_id: str, step: int, dt_us: int) -> None:
        """The request took part in a step of `dt_us`; its call is charged once per step."""
        call = self._by_request.get(request_id)
        if call is not None and call.charged_step != step:
            call.charged_step = step
            call.record.service_us += dt_us

    def end(
        self, request_id: str, stats: CallStats | None, outcome: str, now_us: int, accounting: Accounting
    ) -> CallRecord | None:
        """A request has left the engine. Gives the terminal record when it was the call's last one."""
        call = self._by_request.pop(request_id, None)
        if call is None:
            return None
        call.members.discard(request_id)
        record = call.record
        if stats is not None:
            self.observe(call, stats)
        # One member that ended well makes the call complete; a failure is told only when nothing was delivered.
        if record.outcome != "completed":
            record.outcome = outcome
        if call.members:
            return None
        record.running = False
        del self._open[record.call_id]
        self._ended[record.call_id] = (call.base_id, now_us)
        if len(self._ended) > MAX_ENDED_CALLS:
            self._ended.popitem(last=False)
        known = self._accounts.get(record.root_program_id, (0, 0))
        before = max(known[0], record.attained_service_us)
        after = charge_call(accounting, before, record.attained_service_us, record.service_us)
        self.learn(record.root_program_id, after, known[1] + record.wait_us)
        self.unacked[(record.call_id, record.attempt)] = record
        if len(self.unacked) > MAX_UNACKED:
            self.unacked.popitem(last=False)
            self.totals.dropped_records += 1
        return record

    def observe(self, call: OpenCall, stats: CallStats) -> None:
        """Takes over what the queue knows of one of the call's requests; the worst member speaks for the call."""
        record = call.record
        record.wait_us = max(record.wait_us, stats.wait_us)
        record.level = stats.level
        record.running = stats.running
        record.preemptions = max(record.preemptions, stats.preemptions)
        record.promotions = max(record.promotions, stats.promotions)
        record.demotions = max(record.demotions, stats.demotions)

    def account(self, root: str) -> tuple[int, int]:
        """(attained, wait) known of a program, microseconds."""
        return self._accounts.get(root, (0, 0))

    def snapshot(self, limit: int) -> list[OpenCall]:
        """Up to `limit` open calls; turns through all of them from call to call."""
        chosen: list[OpenCall] = []
        for _ in range(min(limit, len(self._rotation))):
            call_id = self._rotation.popleft()
            call = self._open.get(call_id)
            if call is not None:
                self._rotation.append(call_id)
                chosen.append(call)
        return chosen

    def acknowledge(self, calls: list[tuple[str, int]]) -> None:
        """The sidecar has these terminal records on disk."""
        for call_id, attempt in calls:
            self.unacked.pop((call_id, attempt), None)


def copy_record(record: CallRecord) -> CallRecord:
    """A record that will not change any more."""
    return copy.copy(record)
