"""The scheduling policy as a value, and the presets that have names.

``Policy = accounting x level table x order x anti-starvation x preemption x decision interval`` (paper, section 4,
Algorithm 1). The control plane publishes it; engines and simulators execute it. This module defines which values are
valid. It is pure and imports only the standard library, so that the engine process may import it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

MAX_LEVELS = 64
MAX_NAME_BYTES = 128
MAX_RANK = 1000
MAX_CLASSES = 256
MAX_RETENTION_MILLI = 100_000


class Accounting(StrEnum):
    """How a program's attained service is counted."""

    NONE = "none"
    SUM = "sum"
    CRITICAL_PATH = "critical_path"


class Order(StrEnum):
    """Order of calls inside one level."""

    CALL_ARRIVAL = "call_arrival"
    PROGRAM_ARRIVAL = "program_arrival"
    ATTAINED_SERVICE = "attained_service"


class Source(StrEnum):
    """Where the levels come from."""

    # The policy lists them.
    FIXED = "fixed"
    # The control plane computes them from the service of finished programs, per class of programs (Gittins index). The
    # policy's own levels apply until enough programs have finished.
    GITTINS = "gittins"
    # The control plane chooses, for each class of programs, between these levels and a single one, by how much sizes
    # spread and how many calls programs have open, and the order in the single one by how many calls wait.
    AUTO = "auto"


class InvalidPolicyError(ValueError):
    """A policy that cannot be executed: ``field`` is the path of the invalid field, the message says what to change."""

    def __init__(self, field_path: str, message: str) -> None:
        super().__init__(f"policy.{field_path}: {message}")
        self.field = field_path


@dataclass(frozen=True, slots=True)
class Level:
    """Level i holds attained service in [previous upper bound, upper_bound_us). 0 on the last level = unbounded.

    Levels with a lower `rank` run first. Without ranks, the index of the level is its rank.
    """

    upper_bound_us: int = 0
    quantum_us: int = 0
    rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A scheduling policy. Times are microseconds of model execution; beta is in thousandths (0 = off)."""

    name: str = "custom"
    accounting: Accounting = Accounting.NONE
    levels: tuple[Level, ...] = field(default=(Level(),))
    order: Order = Order.CALL_ARRIVAL
    beta_milli: int = 0
    max_preemptions: int = 0
    decision_interval_steps: int = 1
    # Has no effect; a part of stored policies and of the contract.
    unmanaged_level: int = 0
    source: Source = Source.FIXED
    # Levels by class name, which replace `levels` for programs of that class; ranks compare across classes.
    classes: tuple[tuple[str, tuple[Level, ...]], ...] = ()
    # How long a program's KV is retained during a tool wait, in thousandths of the time to recompute it (0 = off).
    # Calls of lower-priority programs wait if they could start only by evicting it.
    retention_milli: int = 0
    # Programs are admitted whole, while their contexts fit into the engine's KV (or host memory behind it) beside each
    # other; the calls of others wait. Replaces retention.
    working_set: bool = False

    def __post_init__(self) -> None:
        validate(self)

    def levels_of(self, class_name: str) -> tuple[Level, ...]:
        """Levels that programs of a class go through."""
        return next((levels for name, levels in self.classes if name == class_name), self.levels)

    def level_of(self, attained_service_us: int, class_name: str = "") -> int:
        """Level at which a call of a program with this account arrives (Algorithm 1, line 'arrivals')."""
        return level_of(self.levels_of(class_name), attained_service_us)


def validate(policy: Policy) -> None:
    """Raises InvalidPolicyError when the policy cannot be executed."""
    if len(policy.name.encode()) > MAX_NAME_BYTES:
        raise InvalidPolicyError("name", f"at most {MAX_NAME_BYTES} bytes")
    _validate_levels(policy.levels, "levels")
    if len(policy.classes) > MAX_CLASSES:
        raise InvalidPolicyError("classes", f"at most {MAX_CLASSES}, got {len(policy.classes)}")
    names: set[str] = set()
    for index, (name, levels) in enumerate(policy.classes):
        if name in names or len(name.encode()) > MAX_NAME_BYTES:
            message = f"must be unique and at most {MAX_NAME_BYTES} bytes"
            raise InvalidPolicyError(f"classes[{index}].application", message)
        names.add(name)
        _validate_levels(levels, f"classes[{index}].levels")
    if policy.beta_milli != 0 and policy.beta_milli < 1000:
        raise InvalidPolicyError("beta_milli", f"must be 0 (off) or at least 1000 (1.0), got {policy.beta_milli}")
    if policy.max_preemptions < 0:
        raise InvalidPolicyError("max_preemptions", f"must not be negative, got {policy.max_preemptions}")
    if not 0 <= policy.retention_milli <= MAX_RETENTION_MILLI:
        raise InvalidPolicyError(
            "retention_milli", f"must be 0 (off) to {MAX_RETENTION_MILLI}, got {policy.retention_milli}"
        )
    if policy.decision_interval_steps < 1:
        raise InvalidPolicyError("decision_interval_steps", f"must be at least 1, got {policy.decision_interval_steps}")
    if not 0 <= policy.unmanaged_level < len(policy.levels):
        raise InvalidPolicyError(
            "unmanaged_level", f"must be a level, 0 to {len(policy.levels) - 1}, got {policy.unmanaged_level}"
        )


def _validate_levels(levels: tuple[Level, ...], path: str) -> None:
    if not 1 <= len(levels) <= MAX_LEVELS:
        raise InvalidPolicyError(path, f"needs 1 to {MAX_LEVELS} levels, got {len(levels)}")
    below = 0
    for index, level in enumerate(levels[:-1]):
        if level.upper_bound_us <= below:
            raise InvalidPolicyError(
                f"{path}[{index}].upper_bound_us", f"must be greater than {below}, got {level.upper_bound_us}"
            )
        if level.quantum_us <= 0:
            raise InvalidPolicyError(
                f"{path}[{index}].quantum_us", f"must be positive on all but the last level, got {level.quantum_us}"
            )
        below = level.upper_bound_us
    last = len(levels) - 1
    if levels[last].upper_bound_us != 0:
        raise InvalidPolicyError(f"{path}[{last}].upper_bound_us", "the last level has no bound: must be 0")
    if levels[last].quantum_us != 0:
        raise InvalidPolicyError(f"{path}[{last}].quantum_us", "the last level has no quantum: must be 0")
    for index, level in enumerate(levels):
        if level.rank is not None and not 0 <= level.rank <= MAX_RANK:
            raise InvalidPolicyError(f"{path}[{index}].rank", f"must be 0 to {MAX_RANK}, got {level.rank}")


def level_of(levels: tuple[Level, ...], attained_service_us: int) -> int:
    """Index of the level whose range contains the attained service (Algorithm 1, line 'arrivals')."""
    for index, level in enumerate(levels[:-1]):
        if attained_service_us < level.upper_bound_us:
            return index
    return len(levels) - 1


def geometric_levels(count: int = 8, base_us: int = 250_000, ratio: int = 4) -> tuple[Level, ...]:
    """`count` levels with upper bounds base x ratio^i and quanta as wide as the level.

    8 levels from 0.25 s by a factor of 4 reach 1024 s, more than programs attain. With 6 levels all long programs share
    the last one and take turns (docs/results). The paper publishes none of the three numbers.
    """
    bounds = [base_us * ratio**i for i in range(count - 1)]
    lower = [0, *bounds]
    return (*(Level(hi, hi - lo) for lo, hi in zip(lower, bounds, strict=False)), Level())


# The best of 1,000 to 8,000 on coding agents beyond saturation, three seeds; the others are within a tenth of it.
RETENTION_MILLI = 3_000

# The comments say where each preset loses, measured in virtual time (docs/results: ShareGPT, BFCL, LATS, Mixed, five
# seeds). Below saturation no call waits, and all presets are equal.
FCFS = Policy(name="fcfs")
# The best for programs of equal size (BFCL). Otherwise long programs delay short ones: 2.7 to 3.8 times the token
# latency of FCFS at the highest rates.
PROGRAM_FCFS = Policy(name="program-fcfs", order=Order.PROGRAM_ARRIVAL, max_preemptions=64)
# Loses to FCFS on search trees, where every call starts at the first level: by a quarter to two fifths beyond
# saturation.
MLFQ = Policy(name="mlfq", levels=geometric_levels(), beta_milli=20_000, max_preemptions=64)
# Beyond saturation loses to stock vLLM with attained service as priority (most on BFCL: 2,597 against 1,413 ms a
# token), and to FCFS in the mean program latency of ShareGPT on 70B on four A100 (164 against 157 s): programs of one
# level take turns and evict each other. The largest tenth waits up to 1.20 times as long as under FCFS (p99, search
# trees).
PLAS = replace(MLFQ, name="plas", accounting=Accounting.SUM)
# Loses to PLAS on Mixed beyond saturation (58 against 47 ms a token, p99 188 against 89).
ATLAS = replace(MLFQ, name="atlas", accounting=Accounting.CRITICAL_PATH)
# Within a level the program that arrived first runs first: fewer programs are in progress at a time, so their KV is
# still cached when they return. Loses to PLAS on search trees beyond saturation (35 against 32 ms a token, p99 111
# against 84), and where all KV fits (35.9 against 32.3 ms). The largest tenth waits up to 1.14 times as long as under
# FCFS.
PROGRAM_PLAS = replace(PLAS, name="program-plas", order=Order.PROGRAM_ARRIVAL, retention_milli=RETENTION_MILLI)
PROGRAM_ATLAS = replace(PROGRAM_PLAS, name="program-atlas", accounting=Accounting.CRITICAL_PATH)
# The program most likely to end soonest for the service it takes runs first; PROGRAM_PLAS until that is known. Beyond
# saturation it loses to PLAS on search trees: at 0.22/s 34 against 32 ms a token, p99 97 against 84. The largest tenth
# waits up to 1.12 times as long as under FCFS.
GITTINS = replace(PROGRAM_PLAS, name="gittins", source=Source.GITTINS)

# Chooses between FCFS, PROGRAM_FCFS (with retention) and PROGRAM_PLAS for each class. Until 30 programs have finished
# it is PROGRAM_PLAS, and PROGRAM_FCFS for a class most programs of which have many calls at a time.
AUTO = replace(PROGRAM_PLAS, name="auto", source=Source.AUTO)

PRESETS: dict[str, Policy] = {
    p.name: p for p in (AUTO, FCFS, PROGRAM_FCFS, MLFQ, PLAS, ATLAS, PROGRAM_PLAS, PROGRAM_ATLAS, GITTINS)
}

# Policy of a new cluster: as fast as PROGRAM_PLAS, within noise, where that is ahead of FCFS, and level with FCFS where
# programs of like sizes make PROGRAM_PLAS a third slower than that (docs/results).
DEFAULT = AUTO


def preset(name: str) -> Policy:
    """The preset called `name`. Raises InvalidPolicyError, listing the names, when there is none."""
    try:
        return PRESETS[name]
    except KeyError:
        raise InvalidPolicyError("name", f"no preset {name!r}; there are {', '.join(PRESETS)}") from None


def to_dict(policy: Policy) -> dict[str, Any]:
    """Plain values for msgpack or JSON; `from_dict` reads them back."""
    return {
        "name": policy.name,
        "accounting": policy.accounting.value,
        "levels": _rows(policy.levels),
        "order": policy.order.value,
        "beta_milli": policy.beta_milli,
        "max_preemptions": policy.max_preemptions,
        "decision_interval_steps": policy.decision_interval_steps,
        "unmanaged_level": policy.unmanaged_level,
        "source": policy.source.value,
        "retention_milli": policy.retention_milli,
        "working_set": policy.working_set,
        "classes": [[name, _rows(levels)] for name, levels in policy.classes],
    }


def _rows(levels: tuple[Level, ...]) -> list[list[int | None]]:
    return [[level.upper_bound_us, level.quantum_us, level.rank] for level in levels]


def _levels(rows: Any) -> tuple[Level, ...]:
    return tuple(Level(int(bound), int(quantum), rank) for bound, quantum, rank in rows)


def from_dict(data: dict[str, Any]) -> Policy:
    """Inverse of `to_dict`. Raises InvalidPolicyError for values that are no policy, unknown keys included."""
    try:
        return Policy(
            **{
                **data,
                "accounting": Accounting(data["accounting"]),
                "order": Order(data["order"]),
                "source": Source(data["source"]),
                "levels": _levels(data["levels"]),
                "classes": tuple((str(name), _levels(rows)) for name, rows in data["classes"]),
            }
        )
    except InvalidPolicyError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidPolicyError("", f"not a policy: {error}") from error
