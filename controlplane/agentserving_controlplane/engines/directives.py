"""Values that the control plane sends to engines. `api/` turns them into messages. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving.contract.ids import CallId, ProgramId, ProgramKey, Tenant

from agentserving_controlplane.policy.version import PolicyVersion

# Call ids in one CancelCalls: about 200 kB at their longest.
MAX_CALLS_CANCELLED = 1000
# Accounts in one message: about 200 kB at their longest.
MAX_ACCOUNTS = 1000


@dataclass(frozen=True, slots=True)
class Welcome:
    """First message on a stream. `paused`: every paused root program; the engine resumes all others.

    `shares`: as in TenantShares.
    """

    policy: PolicyVersion
    paused: tuple[ProgramKey, ...]
    shares: tuple[tuple[Tenant, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """All reports up to `seq` are durable."""

    seq: int


@dataclass(frozen=True, slots=True)
class Account:
    """Account of a root program, as the table has it now."""

    root: ProgramKey
    attained_service_us: int
    wait_us: int


@dataclass(frozen=True, slots=True)
class Accounts:
    """Accounts that moved on another engine."""

    accounts: tuple[Account, ...]


@dataclass(frozen=True, slots=True)
class ExecutePolicy:
    """The policy to execute from now on."""

    policy: PolicyVersion


@dataclass(frozen=True, slots=True)
class PauseCalls:
    """Pauses or resumes the calls of a root program's tree."""

    root: ProgramKey
    paused: bool


@dataclass(frozen=True, slots=True)
class CancelCalls:
    """Abort these calls, wherever they are in the engine."""

    call_ids: tuple[CallId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolWait:
    """A program began or ended a tool wait: decides how long its KV is worth retaining."""

    root: ProgramKey
    program_id: ProgramId
    thread_id: str
    waiting: bool
    # The client's estimate; 0 = unknown.
    expected_us: int


@dataclass(frozen=True, slots=True)
class ProgramEnded:
    """No call of a root program's tree comes any more: its KV need not stay."""

    root: ProgramKey


@dataclass(frozen=True, slots=True)
class TenantShares:
    """(tenant, weight) of all tenants whose weight is not 1."""

    shares: tuple[tuple[Tenant, int], ...]


Directive = Accounts | ExecutePolicy | PauseCalls | CancelCalls | ToolWait | ProgramEnded | TenantShares
ToEngine = Welcome | Acknowledgement | Directive


def together(messages: list[ToEngine]) -> list[ToEngine]:
    """The same messages as fewer: accounts in one, and the last acknowledgement for all. The order of others stays.

    Neither depends on its place: an engine keeps the largest account, and an acknowledgement covers those before it.
    """
    if len(messages) == 1:
        return messages
    accounts = [account for message in messages if isinstance(message, Accounts) for account in message.accounts]
    acks = [message for message in messages if isinstance(message, Acknowledgement)]
    others: list[ToEngine] = [each for each in messages if not isinstance(each, Accounts | Acknowledgement)]
    parts = range(0, len(accounts), MAX_ACCOUNTS)
    others += [Accounts(tuple(accounts[start : start + MAX_ACCOUNTS])) for start in parts]
    return others + acks[-1:]


def cancel_in_parts(call_ids: list[CallId]) -> list[CancelCalls]:
    """Directives that cancel any number of calls."""
    starts = range(0, len(call_ids), MAX_CALLS_CANCELLED)
    return [CancelCalls(tuple(call_ids[start : start + MAX_CALLS_CANCELLED])) for start in starts]
