"""What the policy `auto` chooses, and why. Pure: sizes of programs and former choices in, choices out.

Where the sizes of programs are alike, it is best to finish one after the other (`program-fcfs`); where they spread, the
least attained service first (`program-plas`). For a single server that always works, FCFS has the lower mean latency
than sharing exactly if the squared coefficient of variation (CV^2) of the service is below one (Kleinrock, Queueing
Systems II, section 4.4); contexts that sharing evicts move the point down. So:

1. If the sizes of all programs together are alike, all get one level.
2. If they spread, but within each class they are alike, each class gets one level, those with less service left first.
3. Otherwise, and until enough programs have finished, all go through the policy's own levels.

Engines know nothing of this: they execute levels and ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from agentserving.contract.policy import Level, Policy, level_of

from agentserving_controlplane.policy.gittins import MIN_SAMPLES, Sizes, Survival, with_ranks

# Sizes below ALIKE become alike, above SPREAD they spread; in between they stay what they are.
ALIKE, SPREAD = 0.6, 0.75
# Classes that are judged, those that ended programs most recently: a policy has at most 256.
MAX_CHOICES = 64
# Programs of classes too small to be judged, as a share of all, up to which rule 2 applies.
UNKNOWN_SHARE = 0.1


class Chosen(StrEnum):
    """The preset whose order programs get."""

    PROGRAM_FCFS = "program-fcfs"
    PROGRAM_PLAS = "program-plas"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was chosen for one class, and what that follows from. `class_name` None: all programs together."""

    class_name: str | None
    chosen: Chosen
    reason: str
    # Whether enough programs have finished, now or before, to know the next three.
    judged: bool = False
    alike: bool = False
    # Squared coefficient of variation of program service, and the mean residual service of a program, microseconds.
    cv2: float = 0.0
    residual_us: int = 0
    finished: int = 0
    live: int = 0
    # When `chosen` became what it is, microseconds of Unix time.
    since_us: int = 0


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and second moment of a size; microseconds."""

    mean: float
    square: float

    @classmethod
    def of(cls, finished: Iterable[int], live: Sequence[int]) -> Moments:
        """From the sizes of finished programs and the attained service of live ones.

        Integrates the survival curve (Kaplan-Meier). Programs larger than every finished one get an exponential tail.
        Its mean is that of all sizes below it, and at least half of the largest finished size and the mean of what live
        programs have attained beyond it.
        """
        survival = Survival.of(finished, live)
        ends, lasting = survival.ends, survival.lasting
        mean = square = 0.0
        for low, high, share in zip(ends, ends[1:], lasting, strict=False):
            mean += share * (high - low)
            square += share * (high * high - low * low)
        if lasting[-1] > 0:
            beyond = [size - ends[-1] for size in live if size > ends[-1]]
            tail = max(mean, ends[-1] / 2, sum(beyond) / max(1, len(beyond)), 1.0)
            square += 2 * lasting[-1] * tail * (ends[-1] + tail)
            mean += lasting[-1] * tail
        return cls(mean, square)

    @property
    def cv2(self) -> float:
        """Squared coefficient of variation; 0 if all sizes are 0."""
        return max(0.0, self.square / self.mean**2 - 1) if self.mean else 0.0

    @property
    def residual(self) -> float:
        """Mean remaining service of a program seen at a random moment of its service (renewal theory)."""
        return self.square / (2 * self.mean) if self.mean else 0.0


@dataclass(frozen=True, slots=True)
class _Judged:
    """Whether the sizes of some programs are alike. Unless `judged`, too few have finished to know."""

    judged: bool
    alike: bool
    cv2: float
    residual: float
    finished: int
    live: int


@dataclass(frozen=True, slots=True)
class Decided:
    """The policy as engines execute it, and the choices that it follows from; that for all programs comes last."""

    policy: Policy
    choices: tuple[Choice, ...] = field(default=())


def decide(policy: Policy, sizes: Sizes, before: Iterable[Choice], now_us: int) -> Decided:
    """Chooses for all programs together, and for each class with MIN_SAMPLES finished programs. `now_us`: Unix time.

    `before`: the choices so far. What has too few finished programs now is still judged as before: samples expire, and
    a restart of the control plane forgets them.
    """
    known = {choice.class_name: choice for choice in before}
    classes: dict[str, _Judged] = {}
    present = [*reversed(sizes.finished), *sorted(sizes.live.keys() - sizes.finished.keys())]
    absent = sorted(name for name in known if name is not None and name not in present)
    for class_name in [*present, *absent]:
        finished, live = sizes.finished.get(class_name, ()), sizes.live.get(class_name, ())
        if len(classes) < MAX_CHOICES and (len(finished) >= MIN_SAMPLES or class_name in known):
            classes[class_name] = _judge(list(finished), list(live), known.get(class_name))
    together = _judge(
        [size for each in sizes.finished.values() for size in each],
        [size for each in sizes.live.values() for size in each],
        known.get(None),
    )
    unknown = together.finished + together.live - sum(each.finished + each.live for each in classes.values())
    # Right after a restart no program is known, and all classes count.
    counting = [each for each in classes.values() if each.finished or each.live] or list(classes.values())
    all_alike = bool(counting) and all(each.alike for each in counting)
    by_class = all_alike and unknown <= UNKNOWN_SHARE * (together.finished + together.live)
    chosen = Chosen.PROGRAM_FCFS if together.alike or by_class else Chosen.PROGRAM_PLAS
    choices = [
        _choice(name, chosen, each, known.get(name), now_us, " within the class" if by_class else "")
        for name, each in sorted(classes.items())
    ]
    choices.append(_choice(None, chosen, together, known.get(None), now_us, ""))
    if together.alike:
        return Decided(_with_levels(policy, (Level(),), ()), tuple(choices))
    if by_class:
        own = with_ranks(policy.levels)
        tables = tuple((name, _one_level(own, each.residual)) for name, each in sorted(classes.items()))
        return Decided(_with_levels(policy, own, tables), tuple(choices))
    return Decided(replace(policy, classes=()), tuple(choices))


def _judge(finished: list[int], live: list[int], before: Choice | None) -> _Judged:
    if len(finished) < MIN_SAMPLES:
        if before is None:
            return _Judged(False, False, 0.0, 0.0, len(finished), len(live))
        return _Judged(before.judged, before.alike, before.cv2, before.residual_us, len(finished), len(live))
    moments = Moments.of(finished, live)
    limit = SPREAD if before is not None and before.alike else ALIKE
    return _Judged(True, moments.cv2 < limit, moments.cv2, moments.residual, len(finished), len(live))


def _choice(
    class_name: str | None, chosen: Chosen, judged: _Judged, before: Choice | None, now_us: int, where: str
) -> Choice:
    if judged.judged:
        reason = f"sizes {'are alike' if judged.alike else 'spread'}{where}: CV^2 of program service {judged.cv2:.2f}"
        reason += f" over {judged.finished} finished and {judged.live} live programs"
        reason += f" (alike below {ALIKE}, spread above {SPREAD})"
    else:
        reason = f"fewer than {MIN_SAMPLES} programs have finished: {judged.finished}"
    if class_name is not None and judged.alike != (chosen is Chosen.PROGRAM_FCFS):
        reason += ", but all programs together decide"
    return Choice(
        class_name=class_name,
        chosen=chosen,
        reason=reason,
        judged=judged.judged,
        alike=judged.alike,
        cv2=judged.cv2,
        residual_us=round(judged.residual),
        finished=judged.finished,
        live=judged.live,
        since_us=before.since_us if before is not None and before.chosen is chosen else now_us,
    )


def _one_level(own: tuple[Level, ...], residual_us: float) -> tuple[Level, ...]:
    """One level, with the rank of that in which the mean residual service falls: similar classes share a rank."""
    return (Level(rank=own[level_of(own, round(residual_us))].rank),)


def _with_levels(
    policy: Policy, levels: tuple[Level, ...], classes: tuple[tuple[str, tuple[Level, ...]], ...]
) -> Policy:
    unmanaged = min(policy.unmanaged_level, len(levels) - 1)
    return replace(policy, levels=levels, classes=classes, unmanaged_level=unmanaged)
