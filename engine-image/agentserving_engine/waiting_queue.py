"""vLLM's waiting queue in the policy's order.

Takes the place of ``Scheduler.waiting`` (and, up to 0.30, of ``skipped_waiting``, where vLLM keeps the requests that it
had to pass over). vLLM's own priority queue is a heap whose entries cannot be moved: re-keying one costs O(n). Here an
entry carries a version, so a promotion is one push. Requests of held programs, those hidden for one step because that
step preempted them, and those left out by `offer_only` count in ``len`` but are not offered. vLLM calls this in the
middle of a step, where an exception would end the engine: `rank_of` and `is_held` must not raise, whatever the id.
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
        self._hidden: set[str] = set()
        self._only: list[str] | None = None
        self._version = 0

    def _push(self, request_id: str) -> None:
        self._version += 1
        self._versions[request_id] = self._version
        heapq.heappush(self._heap, (self._rank_of(request_id), self._version, request_id))

    def _show(self, request_id: str) -> None:
        """Offers a request, unless its program is held or it is hidden."""
        if request_id in self._hidden or self._is_held(request_id):
            self._versions.pop(request_id, None)
        else:
            self._push(request_id)

    def head(self) -> tuple[Rank, int, str] | None:
        """(rank, version, id) of the request that runs next; None when none may."""
        heap, versions = self._heap, self._versions
        if self._only is not None:
            return next(((self._rank_of(key), versions[key], key) for key in self._only if key in versions), None)
        while heap:
            if versions.get(heap[0][2]) == heap[0][1]:
                return heap[0]
            heapq.heappop(heap)
        return None

    # -- what vLLM calls -----------------------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        """Adds by rank."""
        self._requests[request.request_id] = request
        self._show(request.request_id)

    def prepend_request(self, request: Any) -> None:
        """The same as add: rank decides, not the end it comes in at."""
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """Adds each by rank."""
        for request in requests:
            self.add_request(request)

    def peek_request(self) -> Any:
        """The request that runs next. IndexError when none may."""
        head = self.head()
        if head is None:
            raise IndexError("peek from an empty queue")
        return self._requests[head[2]]

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
        self._hidden.discard(request_id)

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Takes out each."""
        for request in requests:
            self.remove_request(request)

    def __bool__(self) -> bool:
        return self.head() is not None

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Any]:
        ranked = sorted((self._rank_of(request_id), request_id) for request_id in self._requests)
        return iter([self._requests[request_id] for _, request_id in ranked])

    # -- what the plugin calls -----------------------------------------------------------------------------------

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._requests

    def rekey(self, request_id: str) -> None:
        """The rank of a request has changed."""
        if request_id in self._versions:
            self._push(request_id)

    def hide(self, request_id: str) -> None:
        """Keeps a request out of sight until `show_hidden`."""
        if request_id in self._requests:
            self._versions.pop(request_id, None)
            self._hidden.add(request_id)

    def show_hidden(self) -> None:
        """Ends every `hide`."""
        shown, self._hidden = self._hidden, set()
        for request_id in shown:
            self._show(request_id)

    def offers(self, request_id: str) -> bool:
        """The request waits here and is neither held nor hidden."""
        return request_id in self._versions

    def offer_only(self, request_ids: list[str] | None) -> None:
        """Until the next time nothing but these is offered, in their order; None: everything, by rank."""
        self._only = request_ids

    @property
    def limited(self) -> bool:
        """`offer_only` leaves something out."""
        return self._only is not None

    def refresh(self) -> None:
        """Every rank, and who is held, may have changed (another policy, a pause)."""
        self._heap.clear()
        for request_id in self._requests:
            self._show(request_id)
