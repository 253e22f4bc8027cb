"""vLLM's waiting queues as views of the policy's order.

A `PolicyQueue` takes the place of ``Scheduler.waiting`` (and, up to 0.30, of ``skipped_waiting``, where vLLM keeps the
requests that it had to pass over). It stores which requests are in it, but no order: `WaitingOrder` reads that from the
policy's `CallQueue`, for all queues together. The first request of the order is the head of the queue that contains it,
and the other queue appears empty; so vLLM's own choice between its two queues follows the policy.

Requests of paused programs, those preempted in this step, and those left out by `limit` count in ``len`` but are not
offered. vLLM calls these methods in the middle of a step, where an exception would end the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vllm.v1.core.sched.request_queue import RequestQueue

from agentserving_engine.policy import CallQueue

Rank = tuple[float, ...]

# Behind every call: a request unknown to the policy, because a hook failed when it arrived.
UNKNOWN: Rank = (math.inf,)


class WaitingOrder:
    """Which waiting request comes next, read from `calls()` as far as vLLM asks."""

    def __init__(self, calls: Callable[[], CallQueue]) -> None:
        self._calls = calls
        self.queues: list[PolicyQueue] = []
        self._hidden: set[str] = set()
        self._startable: list[str] | None = None
        self._unknown: dict[str, None] = {}
        # The beginning of the order as read so far, and the first key in it that may still be in a queue.
        self._keys: list[str] = []
        self._next = 0
        self._complete = False
        self._changes = 0
        self._read_from: tuple[CallQueue, int, int] | None = None

    @property
    def limited(self) -> bool:
        """`limit` leaves some requests out."""
        return self._startable is not None

    @property
    def hides(self) -> bool:
        """Some requests are hidden."""
        return bool(self._hidden)

    def rank(self, key: str) -> Rank:
        """Position of any request in the order; lower runs first."""
        calls = self._calls()
        return calls.rank(key) if key in calls else UNKNOWN

    def head(self) -> tuple[PolicyQueue, str] | None:
        """The request that runs next and the queue that contains it; None when none may start."""
        calls = self._calls()
        source = (calls, calls.order_changes, self._changes)
        if source != self._read_from:
            self._read_from = source
            self._keys, self._next, self._complete = [], 0, False
        while True:
            while self._next < len(self._keys):
                key = self._keys[self._next]
                if key not in self._hidden:
                    for queue in self.queues:
                        if key in queue:
                            return queue, key
                self._next += 1
            if self._complete:
                return None
            self._read_on(calls)

    def _read_on(self, calls: CallQueue) -> None:
        if self._startable is not None:
            self._keys, self._complete = [*self._startable, *self._unknown], True
            return
        count = max(1, 2 * len(self._keys))
        self._keys = calls.first_waiting(count)
        if len(self._keys) < count:
            self._keys += self._unknown
            self._complete = True

    def waiting(self) -> Iterator[str]:
        """Waiting calls that vLLM may see in the next step, best first."""
        for key in self._calls().iter_waiting():
            if key not in self._hidden and any(key in queue for queue in self.queues):
                yield key

    def added(self, key: str) -> None:
        """A request has joined one of the queues."""
        self._changes += 1
        if key not in self._calls():
            self._unknown[key] = None

    def removed(self, key: str) -> None:
        """A request has left its queue."""
        self._hidden.discard(key)
        self._unknown.pop(key, None)

    def hide(self, key: str) -> None:
        """Does not offer a request until `show_hidden`."""
        self._hidden.add(key)
        self._changes += 1

    def show_hidden(self) -> None:
        """Ends every `hide`."""
        if self._hidden:
            self._hidden.clear()
            self._changes += 1

    def limit(self, startable: list[str] | None) -> None:
        """Offers only these requests, in their order, until the next call; None = all."""
        if startable is not None or self._startable is not None:
            self._startable = startable
            self._changes += 1


class PolicyQueue(RequestQueue):
    """The requests of one of vLLM's waiting queues."""

    def __init__(self, order: WaitingOrder) -> None:
        self._order = order
        self._requests: dict[str, Any] = {}
        order.queues.append(self)

    def add_request(self, request: Any) -> None:
        """Adds a request; the policy decides its position."""
        self._requests[request.request_id] = request
        self._order.added(request.request_id)

    def prepend_request(self, request: Any) -> None:
        """The same as `add_request`."""
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """Adds each request."""
        for request in requests:
            self.add_request(request)

    def peek_request(self) -> Any:
        """The request that runs next. IndexError when none of this queue may."""
        head = self._order.head()
        if head is None or head[0] is not self:
            raise IndexError("peek from an empty queue")
        return self._requests[head[1]]

    def pop_request(self) -> Any:
        """Removes and returns the request that runs next."""
        request = self.peek_request()
        self.remove_request(request)
        return request

    def remove_request(self, request: Any) -> None:
        """Removes a request if it is here."""
        if self._requests.pop(request.request_id, None) is not None:
            self._order.removed(request.request_id)

    def remove_requests(self, requests: Iterable[Any]) -> None:
        for request in requests:
            self.remove_request(request)

    def __bool__(self) -> bool:
        head = self._order.head()
        return head is not None and head[0] is self

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Any]:
        return iter([self._requests[key] for key in sorted(self._requests, key=self._order.rank)])

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._requests
