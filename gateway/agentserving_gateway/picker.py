"""Where a request goes: the engines to try, in order, and what they are sent with it.

The transport is an adapter's (authz.py for our Envoy). A request is decided by its head whenever that names its
program; the body is read only when the head does not, and then nothing but the fields of `Body`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from agentserving.contract import budgets, response_ids
from agentserving.contract.budgets import UNLIMITED, Budget
from agentserving.contract.engine_http import RESPONSES
from agentserving.contract.ids import CallId, EngineId, ProgramId, Tenant
from agentserving.contract.program_headers import ProgramHeader
from agentserving.contract.rates import Rate
from agentserving.contract.service_class import ServiceClass, read_service_class
from agentserving.programs.headers import BUDGET, SERVICE_CLASS
from agentserving_process.addresses import split_address

from agentserving_gateway import metrics
from agentserving_gateway.admission import Admission, HoldError
from agentserving_gateway.body import Body, read_body
from agentserving_gateway.calls import Admitted, CallRequest, Ending, EndOfCall
from agentserving_gateway.content import Conversation, Reading, Runs
from agentserving_gateway.credentials import Authenticator, Client
from agentserving_gateway.engines import Engine
from agentserving_gateway.errors import DEFAULT_RETRY_S, HttpError
from agentserving_gateway.grants import Grants
from agentserving_gateway.identity import SOURCES, Identity, from_body, from_head
from agentserving_gateway.leader import MAX_FALLBACKS
from agentserving_gateway.program_names import from_headers as name_from_headers
from agentserving_gateway.rates import Rates, headers
from agentserving_gateway.refused_clients import RefusedClients
from agentserving_gateway.responses import Responses
from agentserving_gateway.routes import BATCHES, Kind, Route, is_response_id, response_id_of
from agentserving_gateway.uploads import Uploads

# W3C Trace Context, version 00.
TRACE_PARENT, MAX_TRACE_PARENT = "traceparent", 55
# Choices of the leader outside a subset before the request is refused.
MAX_FOREIGN = 3
# A long body is read for this time, and then others are served for as long.
TURN_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A request without its body; names of headers in lower case. `length`: bytes of the body, 0 = unknown.

    `program`: from the URL, before `path`; empty for most. `peer`: the client's address; empty = not known.
    `among`: the addresses (host:port, or a host for all its ports) that may be chosen; None = every engine.
    """

    route: Route
    path: str
    headers: Mapping[str, str]
    program: ProgramId = ProgramId("")
    length: int = 0
    peer: str = ""
    among: frozenset[str] | None = None

    def allows(self, address: str) -> bool:
        """Whether the engine at an address may be chosen."""
        return self.among is None or address in self.among or split_address(address)[0] in self.among


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """`addresses` in the order in which they are tried; empty strings for what a request without a ticket has not.

    `credential`: the id of the client's key. `removed_headers`: what engines must not see of the request's head.
    `grant`: for the batch service, which answers then, and no engine.
    `rates`: what is left of the tenant's bounds; `answer_headers`: of these, of the key's and of the program's budget,
    for the client.
    """

    addresses: tuple[str, ...]
    program_id: ProgramId = ProgramId("")
    call_id: CallId = CallId("")
    tenant: Tenant = Tenant("")
    ticket: str = ""
    credential: str = ""
    grant: str = ""
    removed_headers: tuple[str, ...] = ()
    rates: tuple[Rate, ...] = ()
    answer_headers: Mapping[str, str] = field(default_factory=dict)


class NeedsBodyError(Exception):
    """Ask again, with the body."""


class Picker:
    """One per process."""

    def __init__(
        self, admission: Admission, responses: Responses, authenticator: Authenticator, runs: Runs | None = None,
        *, refused: RefusedClients | None = None, uploads: Uploads | None = None, grants: Grants | None = None,
        sources: Sequence[ProgramHeader] = SOURCES,
    ) -> None:  # fmt: skip
        """`runs`: groups calls without an id by what they say; None = each is a program of its own. `uploads`: a bound
        of bodies that are awaited, of each tenant. `grants`: for the batch service; None = there is no key for them.
        `sources`: headers that name programs, the first one that is there counts."""
        self._grants, self._sources = grants, sources
        self._admission, self._responses, self._authenticator = admission, responses, authenticator
        self._runs = runs
        self._rates, self._refused = Rates(), refused or RefusedClients()
        self._uploads = uploads

    async def pick(self, head: Head, content: bytes | None, *, body_follows: bool = True) -> Pick:
        """Raises HttpError for a refusal, 401 before anything else is looked at; NeedsBodyError when `content` is None
        and either has to be read, or the call has to be held while a leader is elected: only the question with the body
        may take that long.

        Without `body_follows` there is no body to be had, and the head decides, however long that takes.
        """
        try:
            return await self._picked(head, content, body_follows)
        except HttpError as error:
            self._refused.record(error, head.peer, head.path)
            if error.rates:
                error.more_headers = {**headers(error.rates, head.path, time.time()), **error.more_headers}
            raise

    async def _picked(self, head: Head, content: bytes | None, body_follows: bool) -> Pick:
        client = self._authenticator.client_of(head.headers)
        if head.route.kind is Kind.BATCH:
            return self._to_batches(head, client)
        named = from_head(head.headers, head.program, self._sources) if head.route.kind is Kind.CALL else None
        if content is None and body_follows and self._needs_body(head, named):
            self._await_body(client)
            raise NeedsBodyError
        if content is not None and self._uploads is not None:
            self._uploads.arrived(client.tenant)
        tokens = _prompt_tokens(head, content)
        rates = self._rates.take(client.credential, client.limits, tokens, time.monotonic())
        try:
            pick = await self._pick(head, named, client, content, body_follows)
        except NeedsBodyError:
            self._await_body(client)
            self._rates.give_back(client.credential, tokens, time.monotonic())
            raise
        except HttpError as error:
            error.rates = (*rates, *error.rates)
            raise
        rates = (*rates, *pick.rates)
        return replace(
            pick,
            tenant=client.tenant,
            credential=client.credential,
            removed_headers=self._authenticator.removed_headers,
            answer_headers={**headers(rates, head.path, time.time()), **pick.answer_headers}
            if rates
            else pick.answer_headers,
        )

    def _to_batches(self, head: Head, client: Client) -> Pick:
        """A request that generates nothing now: the calls of a batch are bounded when they are made."""
        if client.acts_by_grant:
            raise HttpError(
                403, "the credential of a batch is for its calls: use your API key for files and batches",
                "permission_error", "calls_only",
            )  # fmt: skip
        if self._grants is None:
            raise HttpError(
                503, "this gateway has no key to sign with: start it with --ticket-key-file, which batches need",
                "server_error", "no_batches", retry_after_s=DEFAULT_RETRY_S,
            )  # fmt: skip
        is_post = head.route.methods == ("POST",)
        if is_post:
            self._await_body(client)
        creates = is_post and head.path == BATCHES
        grant = self._grants.of_client(client.tenant, client.credential, may_call=creates)
        return Pick(addresses=(), tenant=client.tenant, credential=client.credential, grant=grant)

    def _await_body(self, client: Client) -> None:
        """HttpError 429. Without keys everybody is one tenant."""
        if self._uploads is not None and client.credential:
            self._uploads.awaited(client.tenant, time.monotonic())

    async def _pick(
        self, head: Head, named: Identity | None, client: Client, content: bytes | None, body_follows: bool
    ) -> Pick:
        if head.route.kind is Kind.CALL:
            return await self._call(head, named, client, content, may_hold=content is not None or not body_follows)
        body = Body() if content is None else read_body(content)
        if head.route.kind is Kind.RESPONSE:
            holder = await self._holder(client, response_id_of(head.path))
            if holder is not None and head.allows(holder.address):
                ticket = self._admission.ticket_to_read(client.tenant, [holder])
                return Pick(addresses=(holder.address,), ticket=ticket)
        return await self._any_engine(head, body.model_name, client.tenant)

    def drop(self, pick: Pick, *, was_read: bool = False) -> None:
        """The client has left before the request was sent; `was_read`: perhaps, so that an engine's report prevails."""
        if pick.call_id:
            end = EndOfCall(call_id=pick.call_id, tenant=pick.tenant, ending=Ending.CANCELLED, if_unseen=was_read)
            self._admission.end(end)

    def _needs_body(self, head: Head, named: Identity | None) -> bool:
        if head.route.methods != ("POST",) or head.route.kind is Kind.RESPONSE:
            return False
        # While connections are scarce, those that wait for bodies are counted.
        if head.route.kind is Kind.READ and self._uploads is not None and self._uploads.are_bounded:
            return True
        # The previous response is on one engine.
        if self._admission.models_differ or head.path == RESPONSES:
            return True
        return head.route.kind is Kind.CALL and named is None

    async def _call(
        self, head: Head, named: Identity | None, client: Client, content: bytes | None, *, may_hold: bool
    ) -> Pick:
        began = time.perf_counter()
        body = Body() if content is None else read_body(content)
        identity, name = named or from_body(body), ""
        if not identity.program_id and self._runs is not None:
            conversation = await in_turns(self._runs.reading(body), began)
            if conversation is not None:
                program, name = self._runs.join(client.tenant, conversation), conversation.name
                identity = Identity(program_id=program, source="content") if program else identity
        holder = None
        if head.path == RESPONSES and is_response_id(body.previous_response_id):
            holder = await self._holder(client, body.previous_response_id)
        metrics.identified(identity.source)
        request = CallRequest(
            tenant=client.tenant,
            program_id=identity.program_id,
            parent_program_id=identity.parent_program_id,
            thread_id=identity.thread_id,
            parent_call_ids=identity.parent_call_ids,
            program_name=identity.name or name_from_headers(head.headers) or name,
            prompt_tokens=_prompt_tokens(head, content),
            model=body.model_name,
            final=identity.final,
            exclude=self._all_but(holder),
            received_s=time.monotonic() - (time.perf_counter() - began),
            trace_parent=head.headers.get(TRACE_PARENT, "")[:MAX_TRACE_PARENT],
            budget=_budget(head.headers),
            service_class=_service_class(head.headers),
            service_class_limit=client.service_class,
        )
        try:
            # The question without the body is answered soon, so that a picker that hangs is noticed.
            admitted = await self._admit(head, request, may_hold=may_hold)
        except HoldError:
            raise NeedsBodyError from None
        metrics.ADMIT_SECONDS.observe(time.perf_counter() - began)
        return Pick(
            addresses=(admitted.engine_address, *(each for each in admitted.fallbacks if head.allows(each))),
            program_id=admitted.program_id,
            call_id=admitted.call_id,
            ticket=admitted.ticket,
            rates=admitted.rates,
            answer_headers={BUDGET: budgets.remaining(admitted.budget)} if admitted.budget is not None else {},
        )

    async def _holder(self, client: Client, response_id: str) -> Engine | None:
        """The engine that has a stored response; None: any engine says that there is none. HttpError for others'."""
        if client.credential and response_ids.is_of_another(response_id, client.tenant):
            raise HttpError(404, f"Response with id '{response_id}' not found.", code="not_found", param="response_id")
        engines = self._admission.known_engines
        return await self._responses.engine_of(
            response_id, engines, client.for_engines,
            lambda engine: self._admission.ticket_to_read(client.tenant, [engine]),
        )  # fmt: skip

    def _all_but(self, engine: Engine | None) -> tuple[EngineId, ...]:
        if engine is None:
            return ()
        return tuple(e.engine_id for e in self._admission.known_engines if e.engine_id != engine.engine_id)

    async def _admit(self, head: Head, request: CallRequest, *, may_hold: bool) -> Admitted:
        """Within the addresses that the head allows."""
        if head.among is None:
            return await self._admission.admit(request, may_hold=may_hold)
        foreign: list[EngineId] = []
        # The leader may choose an engine that has attached since it sent its list.
        for _ in range(MAX_FOREIGN):
            exclude = {*self._not_allowed(head), *foreign}
            if not any(engine.engine_id not in exclude for engine in self._admission.ready_engines()):
                break
            within = replace(request, exclude=(*request.exclude, *sorted(exclude)))
            admitted = await self._admission.admit(within, may_hold=may_hold)
            if head.allows(admitted.engine_address):
                return admitted
            if admitted.call_id:
                self._admission.end(
                    EndOfCall(
                        call_id=admitted.call_id, tenant=admitted.tenant, ending=Ending.CANCELLED, never_started=True
                    )
                )
            foreign.append(admitted.engine_id)
        raise no_engine()

    def _not_allowed(self, head: Head) -> list[EngineId]:
        if head.among is None:
            return []
        return [engine.engine_id for engine in self._admission.known_engines if not head.allows(engine.address)]

    async def _any_engine(self, head: Head, model: str, tenant: Tenant) -> Pick:
        await self._admission.ready_engines_soon()
        engine = self._admission.engine_in_turn(model, self._not_allowed(head))
        if engine is None:
            raise no_engine()
        others = [each for each in self._admission.others(model, engine.address) if head.allows(each.address)]
        engines = [engine, *others[:MAX_FALLBACKS]]
        return Pick(
            addresses=tuple(each.address for each in engines),
            ticket=self._admission.ticket_to_read(tenant, engines),
        )


async def in_turns(steps: Reading, began: float) -> Conversation | None:
    """Rests for as long as it has worked: an answer takes others several turns of the loop, with the leader between.

    `began`: when the work on this request began, on the clock of `time.perf_counter`.
    """
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Conversation | None = end.value
            return found
        worked_s = time.perf_counter() - began
        if worked_s > TURN_S:
            await asyncio.sleep(worked_s)
            began = time.perf_counter()


def _budget(headers: Mapping[str, str]) -> Budget:
    """HttpError: other headers are claims that may be wrong, but who limits a program must know whether it is."""
    text = headers.get(BUDGET, "")
    if not text.strip():
        return UNLIMITED
    try:
        return budgets.parse(text)
    except ValueError as error:
        raise HttpError(400, f"{BUDGET}: {error}", code="bad_budget") from None


def _prompt_tokens(head: Head, content: bytes | None) -> int:
    """An estimate: a token has about four bytes."""
    return (head.length if content is None else len(content)) // 4


def _service_class(headers: Mapping[str, str]) -> ServiceClass:
    """What a request asks for. HttpError: a word that means nothing would be served as something else."""
    try:
        return read_service_class(headers.get(SERVICE_CLASS, ""))
    except ValueError as error:
        raise HttpError(400, f"{SERVICE_CLASS}: {error}", code="bad_service_class") from None


def no_engine() -> HttpError:
    """The refusal of a request that no engine can take."""
    return HttpError(503, "no engine is ready: try again in a moment", "server_error", "no_engine", retry_after_s=1.0)
