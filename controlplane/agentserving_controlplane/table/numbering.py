"""Which numbered calls of earlier epochs a row has counted. Pure.

When a control plane dies, admissions that were not yet stored are lost: those numbered at or above the row's watermark
of that epoch. Reports of such calls are adopted once. `ProgramRow.adopted` lists the numbers that have been.
"""

from __future__ import annotations

from agentserving_controlplane.table.rows import MAX_EPOCHS_KEPT, MAX_MISSING_KEPT, ProgramRow


def is_counted(row: ProgramRow, epoch: int, number: int) -> bool:
    """True when a call that is not in flight was in the row's stored numbers, or has been adopted since."""
    return number < row.admitted.get(epoch, 0) or number in row.adopted.get(epoch, ())


def count_adopted(row: ProgramRow, epoch: int, number: int) -> None:
    """Records the adoption of a lost call.

    The list is bounded: at the bound the watermark rises above the smaller numbers, whose calls, if any are still to be
    reported, stay uncounted rather than risk being counted twice.
    """
    numbers = row.adopted.setdefault(epoch, [])
    numbers.append(number)
    row.admitted.setdefault(epoch, 0)
    while sum(map(len, row.adopted.values())) > MAX_MISSING_KEPT:
        oldest = min(row.adopted)
        dropped = sorted(row.adopted[oldest])
        row.admitted[oldest] = dropped[0] + 1 if oldest == epoch else dropped[-1] + 1
        row.adopted[oldest] = dropped[1:] if oldest == epoch else []
        if not row.adopted[oldest]:
            del row.adopted[oldest]
    while len(row.admitted) > MAX_EPOCHS_KEPT:
        oldest = min(row.admitted)
        del row.admitted[oldest]
        row.adopted.pop(oldest, None)
