"""From messages of agentserving.v1 to values. Pure.

The fields of a value have the names of the message's fields, so one walk over them reads any message.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Hashable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, TypeVar

from agentserving.client.values import Balancer, ClosedProgram, EndedCall, Endings, PolicyChoice, PolicyVersion
from agentserving.contract.budgets import Budget, BudgetState, parse
from agentserving.contract.ids import EngineId
from agentserving.contract.policy import InvalidPolicyError, Policy
from agentserving.contract.policy_message import policy_from
from agentserving.v1 import admin_service_pb2, call_service_pb2, types_pb2

Value = TypeVar("Value")
Reader = Callable[[Any, str], Any]


def read(kind: type[Value], message: Any) -> Value:
    """A message as a value. Fields that have a default are not read."""
    readers: dict[str, Reader] = _readers(typing.cast(Hashable, kind))
    return kind(**{name: reader(message, name) for name, reader in readers.items()})


@functools.cache
def _readers(kind: Any) -> dict[str, Reader]:
    hints = typing.get_type_hints(kind)
    return {field.name: _reader(hints[field.name]) for field in fields(kind) if field.default is MISSING}


def _reader(hint: Any) -> Reader:
    if hint == datetime | None:
        return _instant
    if hint is timedelta:
        return lambda message, name: getattr(message, name).ToTimedelta()
    if hint == str | None:
        return lambda message, name: getattr(message, name) if message.HasField(name) else None
    if typing.get_origin(hint) is tuple:
        item: Any = typing.get_args(hint)[0]
        if is_dataclass(item):
            of = typing.cast(type[Any], item)
            return lambda message, name: tuple(read(of, each) for each in getattr(message, name))
        return lambda message, name: tuple(getattr(message, name))
    if hint == BudgetState | None:
        return lambda message, name: budget_state(getattr(message, name)) if message.HasField(name) else None
    if hint is PolicyVersion:
        return lambda message, name: policy_version(getattr(message, name))
    if is_dataclass(hint):
        return lambda message, name: read(typing.cast(type[Any], hint), getattr(message, name))
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return lambda message, name: hint(getattr(message, name))
    return getattr


def _instant(message: Any, name: str) -> datetime | None:
    if not message.HasField(name):
        return None
    found: datetime = getattr(message, name).ToDatetime(tzinfo=UTC)
    return found


def endings(message: call_service_pb2.WatchEndingsResponse) -> Endings:
    """A batch of endings; kinds that this version does not know are left out."""
    found: list[EndedCall | ClosedProgram] = []
    for ending in message.endings:
        match ending.WhichOneof("ending"):
            case "call":
                found.append(read(EndedCall, ending.call))
            case "program":
                found.append(read(ClosedProgram, ending.program))
    return Endings(
        position=message.position,
        endings=tuple(found),
        lost=message.lost,
        restarted=message.restarted,
        send_time=_instant(message, "send_time"),
    )


def budget_state(message: types_pb2.BudgetState) -> BudgetState:
    """A tree's limits, and what it has spent."""
    return BudgetState(limit=_budget(message.limit), spent=_budget(message.spent))


def _budget(message: types_pb2.Budget) -> Budget:
    return Budget(tokens=message.tokens, engine_us=message.engine_us, calls=message.calls)


def budget_message(budget: Budget | str | None) -> types_pb2.Budget | None:
    """A budget, or the text of one, for a request; None for none. ValueError."""
    found = parse(budget) if isinstance(budget, str) and budget else budget or None
    if not isinstance(found, Budget):
        return None
    return types_pb2.Budget(tokens=found.tokens, engine_us=found.engine_us, calls=found.calls)


def policy_version(
    message: types_pb2.PolicyVersion,
    acknowledged: Iterable[str] = (),
    pending: Iterable[str] = (),
    choices: Iterable[admin_service_pb2.PolicyChoice] = (),
) -> PolicyVersion:
    """A policy in force; one that only a newer version understands is not an error."""
    error = ""
    try:
        policy = policy_from(message.policy)
    except InvalidPolicyError as unknown:
        policy, error = Policy(name=message.policy.name), str(unknown)
    return PolicyVersion(
        version=message.version,
        policy=policy,
        balancer=Balancer(message.balancer),
        acknowledged_engine_ids=tuple(EngineId(each) for each in acknowledged),
        pending_engine_ids=tuple(EngineId(each) for each in pending),
        policy_error=error,
        choices=tuple(read(PolicyChoice, choice) for choice in choices),
    )
