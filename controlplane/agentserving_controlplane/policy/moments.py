"""Mean, spread and residual of program sizes, with live programs counted as larger than they are now. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agentserving_controlplane.policy.gittins import MIN_SIZE_US, Survival


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean, second moment and mean inverse of a size; microseconds."""

    mean: float
    square: float
    inverse: float
    # Share of all programs that are larger than nine tenths of the finished ones: a tenth if no program is live.
    unseen: float

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
        return cls(mean, square, inverse, lasting[len(lasting) * 9 // 10])

    @property
    def cv2(self) -> float:
        """Squared coefficient of variation; 0 if all sizes are 0."""
        return max(0.0, self.square / self.mean**2 - 1) if self.mean else 0.0

    @property
    def stretch(self) -> float:
        """Mean size times mean inverse size: 1 if all are equal, large if some are far below the mean.

        What a wait that is the same for all costs in time per token, relative to a wait in proportion to size.
        """
        return self.mean * self.inverse

    @property
    def residual(self) -> float:
        """Mean remaining service of a program seen at a random moment of its service (renewal theory)."""
        return self.square / (2 * self.mean) if self.mean else 0.0
