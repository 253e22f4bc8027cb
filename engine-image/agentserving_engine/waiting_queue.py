"""vLLM's waiting queue in the policy's order.

Takes the place of ``Scheduler.waiting``. vLLM's own priority queue is a heap whose entries cannot be moved: re-keying
one costs O(n). Here an entry carries a version, so a promotion is one push. Requests set aside (held programs, victims
of this very step) count in ``len`` but are not offered.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vllm.v1.core.sched.request_queue import RequestQueue

Rank = tuple[int, int, int]


class RankedQueue(RequestQueue):
    """A request queue ordered by `rank_of(request_id)`, read when a request is added or re-keyed."""

    def __init__(self, rank_of: Callable[[str], Rank], is_held: Callable[[str], bool]) -> None:
        self._rank_of = rank_of
        self._is_held = is_held
        self._requests: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        self._heap: list[tuple[Rank, int, str]] = []
        self._aside: set[str] = set()
        self._version = 0

    def _push(self, request_id: str) -> None:
        self._version += 1
        self._versions[request_id] = self._version
        heapq.heappush(self._heap, (self._rank_of(request_id), self._version, request_id))

    def _head(self) -> str | None:
        heap, versions = self._heap, self._versions
        while heap:
            _, version, request_id = heap[0]
            if versions.get(request_id) == version:
                return request_id
            heapq.heappop(heap)
        return None

    def add_request(self, request: Any) -> None:
        """Adds by rank; a request of a held program is set aside."""
        request_id = request.request_id
        self._requests[request_id] = request
        if self._is_held(request_id):
            self._aside.add(request_id)
        else:
            self._push(request_id)

    def prepend_request(self, request: Any) -> None:
        """The same as add: rank decides, not the end it comes in at."""
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """Adds each by rank."""
        for request in requests:
            self.add_request(request)

    def peek_request(self) -> Any:
        """The request that runs next. IndexError when none may."""
        head = self._head()
        if head is None:
            raise IndexError("peek from an empty queue")
        return self._requests[head]

    def pop_request(self) -> Any:
        """Takes out the request that runs next."""
        request = self.peek_request()
        self.remove_request(request)
        return request

    def remove_request(self, request: Any) -> None:
        """Takes out a request, wherever it stands; a stranger is ignored."""
        request_id = request.request_id
        self._requests.pop(request_id, None)
        self._versions.pop(request_id, None)
        self._aside.discard(request_id)

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Takes out each."""
        for request in requests:
            self.remove_request(request)

    def rekey(self, request_id: str) -> None:
        """The rank of a request has changed."""
        if request_id in self._versions:
            self._push(request_id)

    def set_aside(self, request_id: str) -> None:
        """Keeps a request out of sight until `offer`."""
        if request_id in self._requests:
            self._versions.pop(request_id, None)
            self._aside.add(request_id)

    def offer(self, request_id: str) -> None:
        """Shows a request again, unless its program is held."""
        if request_id in self._aside and not self._is_held(request_id):
            self._aside.discard(request_id)
            self._push(request_id)

    def rekey_all(self) -> None:
        """Every rank may have changed (another policy)."""
        self._heap.clear()
        for request_id in list(self._versions):
            self._push(request_id)

    def __bool__(self) -> bool:
        return bool(self._versions)

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Any]:
        ranked = sorted((self._rank_of(request_id), request_id) for request_id in self._requests)
        return iter([self._requests[request_id] for _, request_id in ranked])
