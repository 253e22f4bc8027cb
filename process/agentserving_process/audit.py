"""Lines of the audit log (`event="audit"`) outside the control plane: changes, and callers who were refused.

Anyone who reaches a port can cause refusals, so they are bounded twice. Equal ones (same caller, method and reason) are
one line a minute, which counts the others; and all together are LINES_PER_MINUTE, of which the next line says how many
were left out. Never prompts, never secrets: callers give ids and addresses.
"""

from __future__ import annotations

from collections import OrderedDict

import structlog
from agentserving.contract.rates import Bucket

log = structlog.get_logger()

LINES_PER_MINUTE = 60
# Equal refusals within this time are counted; so many different ones are told apart.
QUIET_S, MAX_KNOWN = 60.0, 1_000
MAX_CHARS = 128


def changed(*, role: str, method: str, about: str, outcome: str = "OK", **fields: str) -> None:
    """A change was made, or failed (`outcome`: OK, or the name of a gRPC code)."""
    log.info("audit", role=role, method=method, object=about[:MAX_CHARS], outcome=outcome, **fields)


class Refusals:
    """Of one process; `now_s` is monotonic."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._bucket = Bucket(LINES_PER_MINUTE, now_s)
        # (time of the last line, equal refusals since) by what a refusal says.
        self._known: OrderedDict[tuple[tuple[str, str], ...], tuple[float, int]] = OrderedDict()
        self._omitted = 0

    def refused(self, now_s: float, *, outcome: str, reason: str, **fields: str) -> None:
        """Someone was not let in: writes a line, or counts it."""
        said = {name: value[:MAX_CHARS] for name, value in fields.items() if value}
        key = (("reason", reason), *sorted(said.items()))
        since_s, repeated = self._known.get(key, (now_s - QUIET_S, 0))
        if now_s - since_s < QUIET_S:
            self._known[key] = since_s, repeated + 1
            return
        if self._bucket.wait_s(1, now_s):
            self._omitted += 1
            return
        self._bucket.take(1, now_s)
        self._known[key] = now_s, 0
        self._known.move_to_end(key)
        if len(self._known) > MAX_KNOWN:
            self._omitted += self._known.popitem(last=False)[1][1]
        counts = {"repeated": repeated, "omitted": self._omitted}
        self._omitted = 0
        more = {name: count for name, count in counts.items() if count}
        log.warning("audit", **said, outcome=outcome, reason=reason, **more)
