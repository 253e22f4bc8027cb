"""What the policy `auto` chooses, and why. Pure: sizes of programs, contention and former choices in, choices out.

Where the sizes of programs are alike, it is best to finish one after the other (`program-fcfs`); where they spread, the
least attained service first (`program-plas`). For a single server that always works, FCFS has the lower mean latency
than sharing exactly if the squared coefficient of variation (CV^2) of the service is below one (Kleinrock, Queueing
Systems II, section 4.4); contexts that sharing evicts move the point down.

Finishing one after the other has a price: every program waits for all before it, which costs small programs the most,
so the latency per token rises where the mean latency falls. While queues are short and contexts fit, that is all that
any order does, and calls go in the order of their arrival (`fcfs`). Once queues are long, programs that were begun
together evict each other's contexts and all end late, and the price is small compared with that. So:

Sizes count as alike only if small programs are few, too: the price in time per token is the mean size times the mean
inverse size. A few conversations among programs of one size hardly move the CV^2 at first, since the large ones have
not finished, but the small ones move this immediately.

1. If the sizes of all programs together are alike, or those within each class, calls go in the order of their arrival
   until many of them wait for each running one, and programs finish one after the other from then on until few do.
2. In the latter order, if sizes are alike only within each class, each class gets a level, those with less service left
   first.
3. Otherwise, and until enough programs have finished, all go through the policy's own levels, unless many of the open
   calls are of *wide* programs, which have many open at a time: then calls go in the order of their arrival, too. The
   service of a wide program adds up in parallel, so it sinks through the levels before half of its calls have run,
   every newcomer overtakes it, and under load no wide program ends before the arrivals do.
4. At first, until calls wait, calls go in the order of their arrival: nothing else is known to be better.

Engines know nothing of this: they execute levels, ranks and an order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from agentserving.contract.policy import Level, Order, Policy, level_of

from agentserving_controlplane.policy.gittins import MIN_SAMPLES, MIN_SIZE_US, Sizes, Survival, with_ranks

# Sizes are alike once CV^2 is below ALIKE, until it is above SPREAD.
ALIKE, SPREAD = 0.6, 0.75
# The same for the mean size times the mean inverse size. Seen on seeds 0 to 5: 1.4 to 1.9 where programs of one class
# are alike, 4 and more where they are not or two classes are mixed (docs/results).
ALIKE_STRETCH, SPREAD_STRETCH = 2.5, 3.0
# Waiting calls for each running one from which programs of like sizes finish one after the other, and below which calls
# go in the order of their arrival again. Chosen on two seeds of an airline ReAct trace, checked on others
# (docs/results).
BUSY, CALM = 4.0, 0.5
# A program is wide with so many open calls; and the share of all open calls that are of wide programs from which calls
# go in the order of their arrival, and below which levels apply again. Search trees have 5 open calls at most. Chosen
# on seeds 0 to 5 of map-reduce alone and with others, checked on seeds 20 to 25 (docs/results).
WIDE_CALLS, WIDE, NARROW = 8, 0.1, 0.05
# Classes that are judged, those that ended programs most recently: a policy has at most 256.
MAX_CHOICES = 64
# Programs of classes too small to be judged, as a share of all, up to which rule 2 applies.
UNKNOWN_SHARE = 0.1


class Chosen(StrEnum):
    """The preset whose order programs get."""

    FCFS = "fcfs"
    PROGRAM_FCFS = "program-fcfs"
    PROGRAM_PLAS = "program-plas"


@dataclass(frozen=True, slots=True)
class Contention:
    """Calls in all engines, waiting and running. Without any, nothing is known.

    `wide_share`: of the open calls of all programs, those that are of programs with at least WIDE_CALLS.
    """

    waiting: int = 0
    running: int = 0
    wide_share: float = 0.0

    @classmethod
    def of(cls, waiting: int, running: int, open_calls: Iterable[int]) -> Contention:
        """From the calls in all engines, and the number of open calls of each program."""
        opened = list(open_calls)
        wide = sum(calls for calls in opened if calls >= WIDE_CALLS)
        return cls(waiting, running, wide / max(1, sum(opened)))

    def is_busy(self, was_busy: bool) -> bool:
        """Many calls wait; `was_busy` is the former answer, which stays between the bounds."""
        if not self.waiting and not self.running:
            return was_busy
        return self.waiting >= (CALM if was_busy else BUSY) * self.running

    def is_wide(self, was_wide: bool) -> bool:
        """Many open calls are of wide programs; `was_wide` is the former answer, which stays if no call waits."""
        if not self.waiting:
            return was_wide
        return self.wide_share >= (NARROW if was_wide else WIDE)


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
    # For all programs together: many open calls are of wide programs, or no call has waited yet.
    wide: bool = False
    # When `chosen` became what it is, microseconds of Unix time.
    since_us: int = 0


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean, second moment and mean inverse of a size; microseconds."""

    mean: float
    square: float
    inverse: float

    @classmethod
    def of(cls, finished: Iterable[int], live: Sequence[int]) -> Moments:
        """From the sizes of finished programs and the attained service of live ones.

        Integrates the survival curve (Kaplan-Meier). Programs larger than every finished one get an exponential tail.
        Its mean is that of all sizes below it, and at least half of the largest finished size and the mean of what live
        programs have attained beyond it.
        """
        survival = Survival.of(finished, live)
        ends, lasting = survival.ends, survival.lasting
        mean = square = inverse = 0.0
        for low, high, share, after in zip(ends, ends[1:], lasting, lasting[1:], strict=False):
            mean += share * (high - low)
            square += share * (high * high - low * low)
            inverse += (share - after) / max(high, MIN_SIZE_US)
        if lasting[-1] > 0:
            beyond = [size - ends[-1] for size in live if size > ends[-1]]
            tail = max(mean, ends[-1] / 2, sum(beyond) / max(1, len(beyond)), 1.0)
            square += 2 * lasting[-1] * tail * (ends[-1] + tail)
            mean += lasting[-1] * tail
            inverse += lasting[-1] / (ends[-1] + tail)
        return cls(mean, square, inverse)

    @property
    def cv2(self) -> float:
        """Squared coefficient of variation; 0 if all sizes are 0."""
        return max(0.0, self.square / self.mean**2 - 1) if self.mean else 0.0

    @property
    def stretch(self) -> float:
        """Mean size times mean inverse size: 1 if all are equal, large if some are tiny beside the mean.

        What a wait that is the same for all costs in time per token, relative to a wait in proportion to size.
        """
        return self.mean * self.inverse

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
    # Mean size times mean inverse size; 0 = judged before a restart, by choices that do not state it.
    stretch: float = 0.0


@dataclass(frozen=True, slots=True)
class Decided:
    """The policy as engines execute it, and the choices that it follows from; that for all programs comes last."""

    policy: Policy
    choices: tuple[Choice, ...] = field(default=())


def decide(policy: Policy, sizes: Sizes, contention: Contention, before: Iterable[Choice], now_us: int) -> Decided:
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
    former = known.get(None)
    busy = contention.is_busy(former is not None and former.chosen is Chosen.PROGRAM_FCFS)
    wide = contention.is_wide(former is None or former.wide)
    chosen = Chosen.FCFS if wide else Chosen.PROGRAM_PLAS
    if together.alike or by_class:
        chosen = Chosen.PROGRAM_FCFS if busy else Chosen.FCFS
    within = " within the class" if by_class and not together.alike else ""
    choices = [_choice(name, chosen, each, known.get(name), now_us, within) for name, each in sorted(classes.items())]
    choice = replace(_choice(None, chosen, together, former, now_us, ""), wide=wide)
    if together.alike or by_class:
        choice = replace(choice, reason=choice.reason + _waiting(contention, chosen))
    elif wide:
        choice = replace(choice, reason=choice.reason + _width(contention))
    return Decided(_executed(policy, chosen, classes if within else {}), (*choices, choice))


def _executed(policy: Policy, chosen: Chosen, classes: Mapping[str, _Judged]) -> Policy:
    """The policy as engines execute it. `classes`: those that get a level each; none: all programs are one class."""
    if chosen is Chosen.PROGRAM_PLAS:
        return replace(policy, classes=())
    if classes and chosen is Chosen.PROGRAM_FCFS:
        own = with_ranks(policy.levels)
        tables = tuple((name, _one_level(own, each.residual)) for name, each in sorted(classes.items()))
        return _with_levels(policy, own, tables)
    one = _with_levels(policy, (Level(),), ())
    if chosen is Chosen.FCFS:
        # Contexts that fit need no retention, and no program's is worth more than another's.
        return replace(one, order=Order.CALL_ARRIVAL, retention_milli=0, working_set=False)
    return one


def _judge(finished: list[int], live: list[int], before: Choice | None) -> _Judged:
    if len(finished) < MIN_SAMPLES:
        if before is None:
            return _Judged(False, False, 0.0, 0.0, len(finished), len(live))
        return _Judged(before.judged, before.alike, before.cv2, before.residual_us, len(finished), len(live))
    moments = Moments.of(finished, live)
    was_alike = before is not None and before.alike
    alike = moments.cv2 < (SPREAD if was_alike else ALIKE)
    alike = alike and moments.stretch < (SPREAD_STRETCH if was_alike else ALIKE_STRETCH)
    return _Judged(True, alike, moments.cv2, moments.residual, len(finished), len(live), moments.stretch)


def _waiting(contention: Contention, chosen: Chosen) -> str:
    calls = f"; {contention.waiting} calls wait and {contention.running} run"
    if chosen is Chosen.FCFS:
        return f"{calls} (programs finish one after the other from {BUSY:g} waiting for each running one)"
    return f"{calls} (calls go by their arrival again below {CALM:g} waiting for each running one)"


def _width(contention: Contention) -> str:
    if not contention.waiting and contention.wide_share < WIDE:
        return "; calls go by their arrival until some wait"
    share = f"; {contention.wide_share:.0%} of the open calls are of programs with {WIDE_CALLS} or more"
    return f"{share} (calls go by their arrival from {WIDE:.0%} until below {NARROW:.0%})"


def _choice(
    class_name: str | None, chosen: Chosen, judged: _Judged, before: Choice | None, now_us: int, where: str
) -> Choice:
    if judged.judged:
        reason = f"sizes {'are alike' if judged.alike else 'spread'}{where}: CV^2 of program service {judged.cv2:.2f}"
        reason += f" over {judged.finished} finished and {judged.live} live programs"
        reason += f" (alike below {ALIKE}, spread above {SPREAD})"
        if judged.stretch:
            reason += f", mean size times mean inverse {judged.stretch:.1f}"
            reason += f" (alike below {ALIKE_STRETCH:g}, spread above {SPREAD_STRETCH:g})"
    else:
        reason = f"fewer than {MIN_SAMPLES} programs have finished: {judged.finished}"
    if class_name is not None and judged.alike == (chosen is Chosen.PROGRAM_PLAS):
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
