"""A policy version's form in the store: an array without names, so that the largest policy takes 400 kB. Pure.

The policy and the answer to the newest request land in one transaction of the store, which takes 1.5 MB. Earlier forms
are read as well: maps with names (900 kB), and before those the protobuf message, which only `api/` can decode.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from agentserving.contract.policy import Accounting, Level, Order, Policy, Source

from agentserving_controlplane.policy.version import Balancer, PolicyVersion

_Levels = list[tuple[int, int, int | None]]


class UnreadablePolicyError(ValueError):
    """The store holds a policy in a form that this version does not know."""


def refuse_message(data: bytes) -> PolicyVersion:
    """The `decode_message` of a control plane without an earlier version's store."""
    raise ValueError(f"{len(data)} bytes of protobuf")


class _Stored(msgspec.Struct, array_like=True, kw_only=True):
    """New fields go to the end, with a default."""

    version: int
    balancer: Balancer
    name: str
    accounting: Accounting
    levels: _Levels
    order: Order
    beta_milli: int
    max_preemptions: int
    decision_interval_steps: int
    unmanaged_level: int
    source: Source
    classes: list[tuple[str, _Levels]]
    retention_milli: int
    working_set: bool = False


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Stored)
_map_decoder = msgspec.msgpack.Decoder(PolicyVersion)


def encode(version: PolicyVersion) -> bytes:
    """The form for the store."""
    policy = version.policy
    stored = _Stored(
        version=version.version,
        balancer=version.balancer,
        name=policy.name,
        accounting=policy.accounting,
        levels=_plain(policy.levels),
        order=policy.order,
        beta_milli=policy.beta_milli,
        max_preemptions=policy.max_preemptions,
        decision_interval_steps=policy.decision_interval_steps,
        unmanaged_level=policy.unmanaged_level,
        source=policy.source,
        classes=[(name, _plain(levels)) for name, levels in policy.classes],
        retention_milli=policy.retention_milli,
        working_set=policy.working_set,
    )
    return _encoder.encode(stored)


def decode(data: bytes, decode_message: Callable[[bytes], PolicyVersion]) -> PolicyVersion:
    """Inverse of `encode`, for earlier forms too. UnreadablePolicyError.

    `decode_message` decodes the protobuf message; ValueError when the bytes are none.
    """
    try:
        # The first byte tells the forms apart: a msgpack array, a msgpack map, the tag of the message's version field.
        if data[:1] == b"\x08":
            return decode_message(data)
        if data[:1] >= b"\x90":
            return _from_stored(_decoder.decode(data))
        return _map_decoder.decode(data)
    except (ValueError, msgspec.DecodeError) as error:
        raise UnreadablePolicyError(str(error)) from error


def _from_stored(stored: _Stored) -> PolicyVersion:
    policy = Policy(
        name=stored.name,
        accounting=stored.accounting,
        levels=_levels(stored.levels),
        order=stored.order,
        beta_milli=stored.beta_milli,
        max_preemptions=stored.max_preemptions,
        decision_interval_steps=stored.decision_interval_steps,
        unmanaged_level=stored.unmanaged_level,
        source=stored.source,
        classes=tuple((name, _levels(levels)) for name, levels in stored.classes),
        retention_milli=stored.retention_milli,
        working_set=stored.working_set,
    )
    return PolicyVersion(stored.version, policy, stored.balancer)


def _plain(levels: tuple[Level, ...]) -> _Levels:
    return [(level.upper_bound_us, level.quantum_us, level.rank) for level in levels]


def _levels(plain: _Levels) -> tuple[Level, ...]:
    return tuple(Level(*each) for each in plain)
