"""From messages of agentserving.v1 to values, and policies back. Pure.

The values have the names of the messages' fields, so one walk over the fields reads them all.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Hashable
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, TypeVar

from agentserving.client.values import Balancer, ClosedProgram, EndedCall, Endings, PolicyVersion
from agentserving.contract.policy_message import policy_from
from agentserving.v1 import call_service_pb2, types_pb2

Value = TypeVar("Value")
Reader = Callable[[Any, str], Any]


def read(kind: type[Value], message: Any) -> Value:
    """The value that a message says. Fields that have a default are not looked for."""
    readers: dict[str, Reader] = _readers(typing.cast(Hashable, kind))
    return kind(**{name: reader(message, name) for name, reader in readers.items()})


@functools.cache
def _readers(kind: Any) -> dict[str, Reader]:
    hints = typing.get_type_hints(kind)
    return {field.name: _reader(hints[field.name]) for field in fields(kind) if field.default is MISSING}


def _reader(hint: Any) -> Reader:
    if hint == datetime | None:
        return _instant
    if typing.get_origin(hint) is tuple:
        item: Any = typing.get_args(hint)[0]
        if is_dataclass(item):
            of = typing.cast(type[Any], item)
            return lambda message, name: tuple(read(of, each) for each in getattr(message, name))
        return lambda message, name: tuple(getattr(message, name))
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
    """What ended; kinds of endings that this version does not know are left out."""
    found: list[EndedCall | ClosedProgram] = []
    for ending in message.endings:
        match ending.WhichOneof("ending"):
            case "call":
                found.append(read(EndedCall, ending.call))
            case "program":
                found.append(read(ClosedProgram, ending.program))
    return Endings(message.position, tuple(found), message.lost, message.restarted, _instant(message, "send_time"))


def policy_version(
    message: types_pb2.PolicyVersion, acknowledged: tuple[str, ...] = (), pending: tuple[str, ...] = ()
) -> PolicyVersion:
    """A policy in force."""
    return PolicyVersion(
        message.version, policy_from(message.policy), Balancer(message.balancer), acknowledged, pending
    )
