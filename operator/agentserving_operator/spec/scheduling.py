"""The scheduling policy in the API: the name of a preset, or a custom policy.

`to_policy` converts it to the value that engines execute (agentserving.contract.policy).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from agentserving.contract import policy as values
from agentserving.contract import service_class

from agentserving_operator.spec.fields import Rule, choice, flag, integer, items, struct

CUSTOM = "custom"


class PolicyName(StrEnum):
    """The presets of agentserving.contract.policy, and custom."""

    AUTO = "auto"
    FCFS = "fcfs"
    PROGRAM_FCFS = "program-fcfs"
    MLFQ = "mlfq"
    PLAS = "plas"
    ATLAS = "atlas"
    PROGRAM_PLAS = "program-plas"
    PROGRAM_ATLAS = "program-atlas"
    GITTINS = "gittins"
    CUSTOM = "custom"


class Balancer(StrEnum):
    """How an engine is chosen for a call."""

    ROUND_ROBIN = "RoundRobin"
    LEAST_USED = "LeastUsed"
    PROGRAM_LOCALITY = "ProgramLocality"
    PREFIX_AWARE = "PrefixAware"


class ServiceClass(StrEnum):
    """Batch gives way to Standard, and both to Interactive, on every engine."""

    INTERACTIVE = "Interactive"
    STANDARD = "Standard"
    BATCH = "Batch"


class Accounting(StrEnum):
    """How a program's attained service is counted."""

    NONE = "None"
    SUM = "Sum"
    CRITICAL_PATH = "CriticalPath"


class Order(StrEnum):
    """Order of calls inside one level."""

    CALL_ARRIVAL = "CallArrival"
    PROGRAM_ARRIVAL = "ProgramArrival"
    ATTAINED_SERVICE = "AttainedService"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A level with an upper bound. An unbounded level always follows the last one."""

    upper_bound_milliseconds: int = integer(
        "Calls of programs with less attained service than this enter here.", 1, 86_400_000
    )
    quantum_milliseconds: int = integer("Service that a call may attain in this level before demotion.", 1, 86_400_000)


def _ascending(policy: CustomPolicy) -> bool:
    bounds = [level.upper_bound_milliseconds for level in policy.levels]
    return bounds == sorted(bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomPolicy:
    """Accounting x level table x order x anti-starvation x preemption."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.levels) || self.levels.map(l, l.upperBoundMilliseconds).isSorted()",
            "levels must be in ascending order of upperBoundMilliseconds",
            _ascending,
            "levels",
        ),
        Rule(
            "self.betaMilli == 0 || self.betaMilli >= 1000",
            "betaMilli must be 0 (off) or at least 1000",
            lambda p: p.beta_milli == 0 or p.beta_milli >= 1000,
            "betaMilli",
        ),
        Rule(
            "self.unmanagedLevel <= (has(self.levels) ? size(self.levels) : 0)",
            "unmanagedLevel must be a level: 0 to the number of levels",
            lambda p: p.unmanaged_level <= len(p.levels),
            "unmanagedLevel",
        ),
    )

    accounting: Accounting = choice("None, Sum (PLAS) or CriticalPath (ATLAS).", default=Accounting.CRITICAL_PATH)
    levels: tuple[Level, ...] = items(
        "Levels with an upper bound, the first is served first. An unbounded level follows them.",
        values.MAX_LEVELS - 1,
        list_type="map",
        keys=("upperBoundMilliseconds",),
    )
    order: Order = choice("Order of calls in one level.", default=Order.CALL_ARRIVAL)
    beta_milli: int = integer(
        "A call is promoted when wait / service reaches this, in thousandths; 0: off.", 0, 10**9, default=0
    )
    max_preemptions: int = integer("Running calls preempted per decision; 0: none.", 0, 4_096, default=0)
    decision_interval_steps: int = integer("Engine steps between decisions.", 1, 10_000, default=1)
    unmanaged_level: int = integer(
        "Has no effect: calls without a ticket run behind all levels.", 0, values.MAX_LEVELS - 1, default=0
    )
    retention_milli: int = integer(
        "KV is retained during a tool wait for this share of the time to compute it again, in thousandths; 0: off.",
        0,
        values.MAX_RETENTION_MILLI,
        default=0,
    )
    working_set: bool = flag(
        "Programs are admitted whole, while their contexts fit into an engine's KV; the calls of others wait.",
        default=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling:
    """The policy and the load balancer. Changes reach every engine without a restart."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.policy == 'custom') == has(self.custom)",
            "custom is needed with policy custom, and with no other",
            lambda s: (s.policy is PolicyName.CUSTOM) == (s.custom is not None),
            "custom",
        ),
    )

    policy: PolicyName = choice("A preset, or custom.", default=PolicyName(values.DEFAULT.name))
    custom: CustomPolicy | None = struct("The custom policy.", default=None)
    balancer: Balancer = choice("How an engine is chosen for a call.", default=Balancer.PREFIX_AWARE)


_ACCOUNTING = {
    Accounting.NONE: values.Accounting.NONE,
    Accounting.SUM: values.Accounting.SUM,
    Accounting.CRITICAL_PATH: values.Accounting.CRITICAL_PATH,
}
_ORDER = {
    Order.CALL_ARRIVAL: values.Order.CALL_ARRIVAL,
    Order.PROGRAM_ARRIVAL: values.Order.PROGRAM_ARRIVAL,
    Order.ATTAINED_SERVICE: values.Order.ATTAINED_SERVICE,
}


def to_service_class(chosen: ServiceClass | None) -> service_class.ServiceClass:
    """The contract's value; None: any class may be used."""
    return service_class.ServiceClass.UNSPECIFIED if chosen is None else service_class.ServiceClass[chosen.name]


def to_policy(scheduling: Scheduling) -> values.Policy:
    """The value that engines execute. Every Scheduling that keeps the rules above has one."""
    custom = scheduling.custom
    if custom is None:
        return values.preset(scheduling.policy.value)
    bounded = (
        values.Level(upper_bound_us=level.upper_bound_milliseconds * 1000, quantum_us=level.quantum_milliseconds * 1000)
        for level in custom.levels
    )
    return values.Policy(
        name=CUSTOM,
        accounting=_ACCOUNTING[custom.accounting],
        levels=(*bounded, values.Level()),
        order=_ORDER[custom.order],
        beta_milli=custom.beta_milli,
        max_preemptions=custom.max_preemptions,
        decision_interval_steps=custom.decision_interval_steps,
        unmanaged_level=custom.unmanaged_level,
        retention_milli=custom.retention_milli,
        working_set=custom.working_set,
    )
