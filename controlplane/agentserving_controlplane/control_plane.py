"""The leader: its state (state.py) with the operations that change it. Speaks values; `api/` translates messages.

Operations by subject: `calls` (admission), `ends` (of calls), `programs` (their life), `new_session` (one per engine
stream), and here the policy, drains, recovery and `tick`. Refusals are DomainErrors (errors.py). While too many writes
wait for the store, new programs and calls are refused before they change anything; changes of known rows are always
accepted.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog
from agentserving.contract.ids import EngineId, ProgramKey
from agentserving.contract.policy import Source

from agentserving_controlplane.call_ends import CallEnds
from agentserving_controlplane.calls import CallOperations
from agentserving_controlplane.engine_sessions import EngineSession
from agentserving_controlplane.engines.directives import ExecutePolicy
from agentserving_controlplane.engines.engine import Engine
from agentserving_controlplane.engines.identity import EngineIdentity
from agentserving_controlplane.instant import Instant
from agentserving_controlplane.key_operations import KEYS_PREFIX, KeyOperations
from agentserving_controlplane.policy.auto import Choice
from agentserving_controlplane.policy.in_force import CHOICES_KEY, POLICY_KEY, REQUESTS_KEY, PolicyChange
from agentserving_controlplane.policy.stored import UnreadablePolicyError, refuse_message
from agentserving_controlplane.policy.tenants import TENANTS_PREFIX
from agentserving_controlplane.policy.version import PolicyVersion
from agentserving_controlplane.program_operations import ProgramOperations
from agentserving_controlplane.settings import AccessOptions, PlaneSettings
from agentserving_controlplane.state import LeaderState
from agentserving_controlplane.store.port import Store, Write
from agentserving_controlplane.table import rows
from agentserving_controlplane.table.rows import NewerSchemaError
from agentserving_controlplane.table.token_use import TOKENS_PREFIX
from agentserving_controlplane.tenant_operations import TenantOperations
from agentserving_controlplane.upkeep import Upkeep

log = structlog.get_logger()

# Store key of what an administrator has set for an engine.
ENGINES_PREFIX = "engines/"
# Items recovered before other tasks run: some ten milliseconds of work.
ITEMS_PER_SLICE = 1000


class _EngineSetting(msgspec.Struct):
    drained: bool


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """The policy in force, and the attached engines that execute it or do not yet."""

    policy: PolicyVersion
    acknowledged: list[EngineId]
    pending: list[EngineId]
    choices: tuple[Choice, ...]


class ControlPlane(LeaderState):
    """One leadership: created when the claim of an epoch is won, discarded when it is lost."""

    def __init__(
        self,
        settings: PlaneSettings,
        store: Store,
        epoch: int,
        on_fenced: Callable[[Exception], None],
        access: AccessOptions | None = None,
    ) -> None:
        super().__init__(
            settings, store, epoch, on_fenced, settings.capacity(keys=access is not None and access.required)
        )
        self.access = access or AccessOptions()
        self.api_keys = KeyOperations(self, self.access.bootstrap_keys)
        self.tenant_operations = TenantOperations(self)
        self.calls = CallOperations(self)
        self.ends = CallEnds(self)
        self.programs = ProgramOperations(self)
        self._upkeep = Upkeep(self)
        # What recovery could not read, by key in the store, and why.
        self.unreadable: dict[str, str] = {}

    @property
    def unreadable_rows(self) -> int:
        """How many items of the store recovery could not read."""
        return len(self.unreadable)

    async def tick(self) -> None:
        """What is due every few seconds."""
        self.api_keys.tick()
        await self._upkeep.tick()

    async def recover(
        self, store: Store, decode_policy_message: Callable[[bytes], PolicyVersion] = refuse_message
    ) -> None:
        """Reads the store and starts to write. StoreUnavailableError, NewerSchemaError.

        `decode_policy_message`: see policy/stored.py.
        """
        began = time.monotonic()
        snapshot = await store.load()
        programs: list[rows.ProgramRow] = []
        now = self.now()
        chunks: dict[ProgramKey, dict[int, list[rows.CallRow]]] = defaultdict(dict)
        for count, (key, value) in enumerate(snapshot.items.items(), start=1):
            # The lease is renewed meanwhile, however many rows there are.
            if count % ITEMS_PER_SLICE == 0:
                await asyncio.sleep(0)
            try:
                self._restore(key, value, programs, chunks, now)
            except NewerSchemaError:
                raise
            except ValueError as error:
                # Its program starts again without history, its key is unknown; all others are restored.
                self.unreadable[key] = str(error)
                log.error("a row of the store cannot be read, it is left as it is", key=key, error=str(error))
        for begin in range(0, len(programs), ITEMS_PER_SLICE):
            self.table.restore(programs[begin : begin + ITEMS_PER_SLICE], chunks, now)
            await asyncio.sleep(0)
        try:
            self.policy_in_force.restore(
                snapshot.items.get(POLICY_KEY),
                snapshot.items.get(REQUESTS_KEY),
                snapshot.items.get(CHOICES_KEY),
                decode_policy_message,
            )
        except UnreadablePolicyError as error:
            in_force = self.policy.policy.name
            self.unreadable[POLICY_KEY] = str(error)
            log.error("the stored policy cannot be read: apply it again", in_force=in_force, error=str(error))
        self.use_policy()
        for row in programs:
            self.keys.restore(row, now.steady_us)
        for engine_id in self.table.index.engines_with_calls():
            self.engines.ensure(engine_id, now.steady_us)
        self.commits.start()
        # Before engines attach, so that they begin or go on with what is chosen; and again at the first tick.
        if self.policy.policy.source is Source.AUTO:
            await self._upkeep.relevel()
            self._upkeep.relevel_now()
        self.settle()
        self.ends.resume(programs)
        log.info("recovered", programs=len(programs), revision=snapshot.revision, seconds=time.monotonic() - began)

    def _restore(
        self,
        key: str,
        value: bytes,
        programs: list[rows.ProgramRow],
        chunks: dict[ProgramKey, dict[int, list[rows.CallRow]]],
        now: Instant,
    ) -> None:
        """Reads one item of the store. ValueError."""
        if key.startswith(rows.ROWS_PREFIX):
            programs.append(rows.decode(value))
        elif key.startswith(rows.CHUNKS_PREFIX):
            program, number = rows.list_parts(key)
            chunks[program][number] = rows.decode_calls(value)
        elif key.startswith(rows.LATE_PREFIX):
            self.table.late.restore(*rows.list_parts(key), rows.decode_calls(value), now)
        elif key.startswith(ENGINES_PREFIX) and msgspec.msgpack.decode(value, type=_EngineSetting).drained:
            self.engines.drained.add(EngineId(key.removeprefix(ENGINES_PREFIX)))
        elif key.startswith(KEYS_PREFIX):
            self.api_keys.restore(value)
        elif key.startswith(TENANTS_PREFIX):
            self.tenant_operations.restore(value)
        elif key.startswith(TOKENS_PREFIX):
            self.table.tokens.restore(key, value)

    # -- engines -------------------------------------------------------------------------------------------------

    def new_session(self, identity: EngineIdentity | None = None) -> EngineSession:
        """The conversation with a sidecar that has connected; `identity` None = whatever it says is believed."""
        return EngineSession(self, self.ends, identity)

    async def drain(self, engine_id: EngineId, drained: bool) -> Engine:
        """Begins or ends a drain; durable. NotFoundError for an engine that is not known."""
        known = engine_id in self.engines.drained
        engine = self.engines.ensure(engine_id, self.now().steady_us) if known else self.engines.get(engine_id)
        self.engines.set_drained(engine_id, drained)
        setting = msgspec.msgpack.encode(_EngineSetting(True)) if drained else None
        number = self.commits.put_together([Write(f"{ENGINES_PREFIX}{engine_id}", setting)])
        self.wake()
        await self.commits.durable(number)
        return engine

    # -- policy --------------------------------------------------------------------------------------------------

    async def apply_policy(self, change: PolicyChange) -> PolicyVersion:
        """Puts a policy in force, durably, and sends it to every engine."""
        version, items = self.policy_in_force.apply(change)
        if items:
            self.commits.put_together([Write(key, value) for key, value in items])
            self.use_policy()
            self._upkeep.relevel_now()
            self.links.send_all(ExecutePolicy(self.policy_in_force.for_engines))
        await self.commits.durable(self.commits.number)
        return version

    def policy_status(self) -> PolicyStatus:
        """Which attached engines execute the policy in force."""
        attached = [engine for engine in self.engines if engine.attached]
        version = self.policy.version
        return PolicyStatus(
            self.policy,
            sorted(engine.engine_id for engine in attached if engine.policy_version == version),
            sorted(engine.engine_id for engine in attached if engine.policy_version != version),
            self.policy_in_force.choices,
        )
