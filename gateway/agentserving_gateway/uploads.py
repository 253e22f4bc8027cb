"""How many requests of a tenant wait for their bodies: a bound for times when connections are scarce. Pure.

A call counts among its tenant's calls once it is admitted. Before that, a body may take two minutes to arrive, and its
connection is neither idle, so that it gave way to others, nor counted. Envoy ends a request whose body does not arrive
in time, so each one that is awaited counts for no longer than that; one that its client breaks off counts until then.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from agentserving.contract.ids import Tenant

from agentserving_gateway.errors import HttpError

# A tenant may have this part of all connections.
SHARE = 0.1


class Uploads:
    """One per process. Instants are seconds of the monotonic clock."""

    def __init__(self, most: int, request_s: float, is_crowded: Callable[[], bool]) -> None:
        """`most`: of a tenant, while `is_crowded`. `request_s`: Envoy's limit for a whole request."""
        self._most, self._request_s, self._is_crowded = most, request_s, is_crowded
        # When the oldest began; which of them has arrived does not matter.
        self._awaited: dict[Tenant, deque[float]] = {}

    @property
    def are_bounded(self) -> bool:
        """Whether connections are scarce."""
        return self._is_crowded()

    def awaited(self, tenant: Tenant, now_s: float) -> None:
        """A body is asked for. HttpError 429 when the tenant has too many on the way."""
        began = self._awaited.setdefault(tenant, deque(maxlen=max(1, self._most)))
        while began and now_s - began[0] >= self._request_s:
            began.popleft()
        if self.are_bounded and len(began) >= self._most:
            wait_s = began[0] + self._request_s - now_s
            raise HttpError(
                429,
                f"{len(began)} requests of this tenant still send their bodies, as many as it may have while most of "
                f"the gateway's connections are in use: finish them, or try again in {math.ceil(wait_s)} s",
                "rate_limit_error",
                "too_many_uploads",
                retry_after_s=wait_s,
            )
        began.append(now_s)

    def arrived(self, tenant: Tenant) -> None:
        """A body is there."""
        began = self._awaited.get(tenant)
        if began:
            began.popleft()
        if not began:
            self._awaited.pop(tenant, None)
