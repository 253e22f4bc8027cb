"""What the policy `auto` chooses, and why. Pure: sizes of programs, contention and former choices in, choices out.

Where the sizes of programs are alike, it is best to finish one after the other (`program-fcfs`); where they spread, the
least attained service first (`program-plas`). For a single server that always works, FCFS has the lower mean latency
than sharing exactly if the squared coefficient of variation (CV^2) of the service is below one (Kleinrock, Queueing
Systems II, section 4.4); contexts that sharing evicts move the point down.

Finishing one after the other has a price: every program waits for all before it, which costs small programs the most,
so the latency per token rises where the mean latency falls. While queues are short and contexts fit, that is all that
any order does, and calls go in the order of their arrival (`fcfs`). Once queues are long, or contexts no longer fit,
programs that were begun together evict each other's contexts and all end late, and the price is small compared with
that. So:

Sizes count as alike only if few programs are larger than most that have finished, and if small programs are few: the
price in time per token is the mean size times the mean inverse size. A few conversations among programs of one size
hardly move the CV^2 at first, since the large ones have not finished, but the small ones move this immediately.

1. If the sizes of all programs together are alike, or those within each class, calls go in the order of their arrival
   until many of them wait for each running one, unless the price is high, or some do while the contexts of live
   programs exceed the KV caches and some are evicted. Programs finish one after the other until neither is so.
2. In the latter order, if sizes are alike only within each class, each class gets a level, those with less service left
   first.
3. Otherwise, and until enough programs have finished, programs go through the policy's own levels, but for classes with
   a level of their own: that in which their mean residual service falls. Those are classes of sizes that are alike, and
   *wide* ones, most programs of which have many calls open at a time. The service of a wide program adds up in
   parallel, so in the policy's levels it sinks before half of its calls have run, every newcomer overtakes it, and
   under load none ends, so that its size would never be known.
4. If many open calls of the last minutes are of wide programs of other classes, all calls go in the order of their
   arrival. So they do at first, until calls wait: nothing else is known to be better.

Engines know nothing of this: they execute levels, ranks and an order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from agentserving.contract.policy import Level, Order, Policy, level_of

from agentserving_controlplane.policy.contention import (
    BUSY,
    CALM,
    CROWDED,
    EVICTED,
    NARROW,
    ROOMY,
    WIDE,
    WIDE_CALLS,
    WINDOW_S,
    Contention,
)
from agentserving_controlplane.policy.gittins import MIN_SAMPLES, Sizes, with_ranks
from agentserving_controlplane.policy.moments import Moments

# Sizes are alike once CV^2 is below ALIKE, until it is above SPREAD.
ALIKE, SPREAD = 0.6, 0.75
# The same for the mean size times the mean inverse size. Seen on seeds 0 to 5: 1.4 to 1.9 where programs of one class
# are alike, 4 and more where they are not or two classes are mixed (docs/results).
ALIKE_STRETCH, SPREAD_STRETCH = 2.5, 3.0
# Price in time per token up to which programs finish one after the other for long queues alone.
PRICE = 1.3
# Share of programs larger than nine tenths of the finished ones up to which sizes can become alike. Seen where they are
# alike: 0.1 to 0.34 (BFCL, map-reduce, seed 60). Sizes of recorded coding agents spread: 0.39 to 0.73 for hours, until
# most of those that began together have ended (seeds 7 to 9).
UNSEEN = 0.35
# Classes that are judged, those that ended programs most recently: a policy has at most 256.
MAX_CHOICES = 64
# Programs of classes too small to be judged, as a share of all, up to which rule 2 applies.
UNKNOWN_SHARE = 0.1
# Classes that a reason names.
MAX_NAMED = 5


class Chosen(StrEnum):
    """The preset whose order programs get."""

    FCFS = "fcfs"
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
    # For a class: most of its programs have many open calls. For all programs together: many of the calls open in
    # classes without a level of their own are of wide programs, or no call has waited yet.
    wide: bool = False
    # When `chosen` became what it is, microseconds of Unix time.
    since_us: int = 0


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
    # Share of programs that are larger than nine tenths of the finished ones.
    unseen: float = 0.0
    # Most programs of the class have many open calls.
    wide: bool = False

    @property
    def price(self) -> float:
        """Time per token of finishing one after the other, as a multiple of that of sharing, where no context is
        evicted: for M/G/1 the mean waits are as (1 + CV^2) / 2, and each token bears its program's."""
        return (1 + self.cv2) / 2 * self.stretch

    @property
    def stands_alone(self) -> bool:
        """The class has a level of its own where others spread."""
        return self.alike or (self.wide and self.stretch < SPREAD_STRETCH)


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
    classes = _judged_classes(sizes, contention, known)
    together = _judge(
        [size for each in sizes.finished.values() for size in each],
        [size for each in sizes.live.values() for size in each],
        known.get(None),
    )
    by_class = not together.alike and _alike_by_class(classes, together)
    own = frozenset(name for name, each in classes.items() if by_class or each.stands_alone)
    former = known.get(None)
    if together.alike or by_class:
        wide = contention.is_wide(former is None or former.wide)
        # Wide programs gain more than small ones pay: by the arrival of calls they would all end late.
        price = 0.0 if by_class or contention.wide_share() >= WIDE else together.price
        was_busy = former is not None and former.chosen is Chosen.PROGRAM_FCFS
        busy = contention.is_busy(was_busy, only_if_crowded=price > PRICE)
        chosen = Chosen.PROGRAM_FCFS if busy else Chosen.FCFS
        own = own if by_class and busy else frozenset()
        after = _waiting(contention, chosen, price)
    else:
        wide = contention.is_wide(former is None or former.wide, without=own)
        chosen = Chosen.FCFS if wide else Chosen.PROGRAM_PLAS
        own = frozenset() if wide else own
        after = _width(contention, own) if wide else _alone(own)
    where = " within the class" if by_class else ""
    choices = [
        _choice(name, chosen, each, known.get(name), now_us, where, name in own)
        for name, each in sorted(classes.items())
    ]
    choice = _choice(None, chosen, together, former, now_us, "", False)
    choices.append(replace(choice, wide=wide, reason=choice.reason + after))
    return Decided(_executed(policy, chosen, {name: classes[name] for name in sorted(own)}), tuple(choices))


def _judged_classes(sizes: Sizes, contention: Contention, known: Mapping[str | None, Choice]) -> dict[str, _Judged]:
    """The classes judged now or before, and wide ones, even if few of their programs have finished."""
    classes: dict[str, _Judged] = {}
    present = [*reversed(sizes.finished), *sorted(sizes.live.keys() - sizes.finished.keys())]
    absent = sorted(name for name in known if name is not None and name not in present)
    for class_name in [*present, *absent]:
        finished, live = sizes.finished.get(class_name, ()), sizes.live.get(class_name, ())
        before = known.get(class_name)
        # A class that is gone and was never judged is forgotten: names may be as many as programs.
        is_there = bool(finished or live)
        wide = is_there and contention.is_wide_class(class_name, before is not None and before.wide)
        was_judged = before is not None and before.judged
        if len(classes) < MAX_CHOICES and (len(finished) >= MIN_SAMPLES or was_judged or wide):
            classes[class_name] = replace(_judge(list(finished), list(live), before), wide=wide)
    return classes


def _alike_by_class(classes: Mapping[str, _Judged], together: _Judged) -> bool:
    """Sizes are alike within each class, and few programs are of classes that are not judged."""
    judged = [each for each in classes.values() if each.judged]
    unknown = together.finished + together.live - sum(each.finished + each.live for each in judged)
    # Right after a restart no program is known, and all classes count.
    counting = [each for each in judged if each.finished or each.live] or judged
    all_alike = bool(counting) and all(each.alike for each in counting)
    return all_alike and unknown <= UNKNOWN_SHARE * (together.finished + together.live)


def _executed(policy: Policy, chosen: Chosen, alone: Mapping[str, _Judged]) -> Policy:
    """The policy as engines execute it. `alone`: the classes that get a level each."""
    if chosen is Chosen.PROGRAM_PLAS and not alone:
        return replace(policy, classes=())
    if alone:
        own = with_ranks(policy.levels)
        tables = tuple((name, _one_level(own, each.residual)) for name, each in alone.items())
        return _with_levels(policy, own, tables)
    one = _with_levels(policy, (Level(),), ())
    if chosen is Chosen.FCFS:
        # Contexts that fit need no retention, and no program's is worth more than another's.
        return replace(one, order=Order.CALL_ARRIVAL, retention_milli=0, working_set=False)
    return one


def _judge(finished: list[int], live: list[int], before: Choice | None) -> _Judged:
    if len(finished) < MIN_SAMPLES:
        if before is None or not before.judged:
            residual = Moments.of(finished, live).residual
            return _Judged(False, False, 0.0, residual, len(finished), len(live))
        return _Judged(before.judged, before.alike, before.cv2, before.residual_us, len(finished), len(live))
    moments = Moments.of(finished, live)
    was_alike = before is not None and before.alike
    alike = moments.cv2 < (SPREAD if was_alike else ALIKE)
    alike = alike and moments.stretch < (SPREAD_STRETCH if was_alike else ALIKE_STRETCH)
    alike = alike and (was_alike or moments.unseen <= UNSEEN)
    return _Judged(
        True, alike, moments.cv2, moments.residual, len(finished), len(live), moments.stretch, moments.unseen
    )


def _waiting(contention: Contention, chosen: Chosen, price: float) -> str:
    calls = f"; {contention.waiting} calls wait and {contention.running} run"
    if contention.context:
        calls += f", contexts take {contention.context:.0%} of the KV caches, {contention.evicted:.0%} were evicted"
    if chosen is Chosen.FCFS:
        queues = f"from {BUSY:g} waiting for each running one, or "
        if price > PRICE:
            queues = f"at {price:.1f} times the time per token, not for long queues alone: "
        return (
            f"{calls} (programs finish one after the other {queues}from {CROWDED:.0%} of the KV caches and "
            f"{EVICTED:.0%} evicted while calls wait)"
        )
    return (
        f"{calls} (calls go by their arrival again below {CALM:g} waiting for each running one and {ROOMY:.0%} of the "
        "KV caches)"
    )


def _width(contention: Contention, own: Collection[str]) -> str:
    share = contention.wide_share(own)
    if not contention.waiting and share < WIDE:
        return "; calls go by their arrival until some wait"
    programs = f"programs with {WIDE_CALLS} or more, of classes that differ in width"
    many = f"; {share:.0%} of the open calls of the last {WINDOW_S} s are of {programs}"
    return f"{many} (calls go by their arrival from {WIDE:.0%} until below {NARROW:.0%})"


def _alone(own: Collection[str]) -> str:
    if not own:
        return ""
    return f"; with a level of their own: {', '.join(sorted(own)[:MAX_NAMED])}{', ...' * (len(own) > MAX_NAMED)}"


def _choice(
    class_name: str | None, chosen: Chosen, judged: _Judged, before: Choice | None, now_us: int, where: str, alone: bool
) -> Choice:
    """`alone`: the class has a level of its own, in which its programs finish one after the other."""
    chosen = Chosen.PROGRAM_FCFS if alone else chosen
    reason = _sizes(judged, where)
    if judged.wide:
        reason += f", most programs have {WIDE_CALLS} or more open calls"
    if alone:
        reason += "; they finish one after the other, at the level of the service that they still need"
    elif class_name is not None and judged.alike == (chosen is Chosen.PROGRAM_PLAS):
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
        wide=judged.wide,
        since_us=before.since_us if before is not None and before.chosen is chosen else now_us,
    )


def _sizes(judged: _Judged, where: str) -> str:
    if not judged.judged:
        return f"fewer than {MIN_SAMPLES} programs have finished: {judged.finished}"
    known = "are alike" if judged.alike else "spread" if judged.unseen <= UNSEEN else "are not known yet"
    reason = f"sizes {known}{where}: CV^2 of program service {judged.cv2:.2f}"
    reason += f" over {judged.finished} finished and {judged.live} live programs"
    reason += f" (alike below {ALIKE}, spread above {SPREAD})"
    if judged.stretch:
        reason += f", mean size times mean inverse {judged.stretch:.1f}"
        reason += f" (alike below {ALIKE_STRETCH:g}, spread above {SPREAD_STRETCH:g})"
    if judged.unseen > UNSEEN:
        reason += f", {judged.unseen:.0%} of the programs are larger than nine tenths of those that have finished"
    return reason


def _one_level(own: tuple[Level, ...], residual_us: float) -> tuple[Level, ...]:
    """One level, with the rank of that in which the mean residual service falls: similar classes share a rank."""
    return (Level(rank=own[level_of(own, round(residual_us))].rank),)


def _with_levels(
    policy: Policy, levels: tuple[Level, ...], classes: tuple[tuple[str, tuple[Level, ...]], ...]
) -> Policy:
    unmanaged = min(policy.unmanaged_level, len(levels) - 1)
    return replace(policy, levels=levels, classes=classes, unmanaged_level=unmanaged)
