"""Converts policies between values and protobuf messages, for every component that speaks gRPC. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from agentserving.contract.policy import Accounting, InvalidPolicyError, Level, Order, Policy, Source, preset
from agentserving.v1 import types_pb2

_ACCOUNTING = {types_pb2.Accounting.Value(f"ACCOUNTING_{each.name}"): each for each in Accounting}
_ORDER = {types_pb2.Order.Value(f"ORDER_{each.name}"): each for each in Order}
_SOURCE = {types_pb2.LevelSource.Value(f"LEVEL_SOURCE_{each.name}"): each for each in Source}
_SOURCE[types_pb2.LEVEL_SOURCE_UNSPECIFIED] = Source.FIXED


def policy_from(message: types_pb2.Policy) -> Policy:
    """The policy of a message; a message with only a name selects the preset. Raises InvalidPolicyError."""
    if message == types_pb2.Policy(name=message.name):
        if not message.name:
            raise InvalidPolicyError("accounting", "must be set")
        return preset(message.name)
    for field, known in (("accounting", _ACCOUNTING), ("order", _ORDER), ("source", _SOURCE)):
        if getattr(message, field) not in known:
            raise InvalidPolicyError(field, "must be set" if not getattr(message, field) else "unknown value")
    return Policy(
        name=message.name or "custom",
        accounting=_ACCOUNTING[message.accounting],
        levels=_levels_from(message.levels),
        order=_ORDER[message.order],
        beta_milli=message.beta_milli,
        max_preemptions=message.max_preemptions,
        decision_interval_steps=message.decision_interval_steps,
        unmanaged_level=message.unmanaged_level,
        source=_SOURCE[message.source],
        classes=tuple((each.application, _levels_from(each.levels)) for each in message.classes),
        retention_milli=message.retention_milli,
        working_set=message.working_set,
    )


def policy_to(policy: Policy) -> types_pb2.Policy:
    """Inverse of `policy_from`."""
    return types_pb2.Policy(
        name=policy.name,
        accounting=types_pb2.Accounting.Value(f"ACCOUNTING_{policy.accounting.name}"),
        levels=_levels_to(policy.levels),
        order=types_pb2.Order.Value(f"ORDER_{policy.order.name}"),
        beta_milli=policy.beta_milli,
        max_preemptions=policy.max_preemptions,
        decision_interval_steps=policy.decision_interval_steps,
        unmanaged_level=policy.unmanaged_level,
        source=types_pb2.LevelSource.Value(f"LEVEL_SOURCE_{policy.source.name}"),
        classes=[types_pb2.ClassLevels(application=name, levels=_levels_to(lvs)) for name, lvs in policy.classes],
        retention_milli=policy.retention_milli,
        working_set=policy.working_set,
    )


def _levels_from(messages: Iterable[types_pb2.Level]) -> tuple[Level, ...]:
    return tuple(
        Level(each.upper_bound_us, each.quantum_us, each.rank if each.HasField("rank") else None) for each in messages
    )


def _levels_to(levels: Iterable[Level]) -> list[types_pb2.Level]:
    return [
        types_pb2.Level(upper_bound_us=each.upper_bound_us, quantum_us=each.quantum_us, rank=each.rank)
        for each in levels
    ]
