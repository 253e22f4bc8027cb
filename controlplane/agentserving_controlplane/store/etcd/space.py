"""Reclaims space of an etcd that has exceeded its quota (`--quota-backend-bytes`).

etcd then raises the NOSPACE alarm and refuses every transaction and every new lease until an administrator intervenes.
This module does what etcd's documentation prescribes: compact the history, defragment each member, the raft leader
last, and disarm the alarm. Compaction alone is not enough, because the quota limits the size of the database file, and
only defragmentation makes the file smaller (etcd-io/etcd#16779).

Defragmentation stops a member for seconds and may cost this process its lease (etcd-io/etcd#13313); the next holder
finds less to do. It is done only while the alarm is raised or near. `tend` avoids the alarm: it compacts the history as
soon as the file has half the size of the quota, and the freed pages are used before the file grows. Both are done only
in an etcd that contains no keys but ours, since compaction removes the history of other clients as well.
"""

from __future__ import annotations

import contextlib
import time

import structlog

from agentserving_controlplane.store.etcd import wire_pb2 as pb
from agentserving_controlplane.store.etcd.client import EtcdClient
from agentserving_controlplane.store.port import StoreError, StoreUnavailableError

log = structlog.get_logger()

REQUEST_S = 5.0
# Of a large database on a slow disk.
COMPACTION_S, DEFRAGMENTATION_S = 30.0, 60.0
# When reclaiming frees less than this share, the data itself is near the quota, and repeating it only stops members.
LITTLE = 0.1
AGAIN_S, AGAIN_AFTER_LITTLE_S = 2.0, 60.0
# etcd's default.
QUOTA_BYTES = 2 << 30
# Share of the quota from which on the history is compacted, and the time between two compactions: one reads all keys.
COMPACT_FROM, COMPACT_AGAIN_S = 0.5, 30.0
# From this share on a file with unused pages is defragmented: what waits for the alarm stops the member as long.
DEFRAGMENT_FROM = 0.9


class Space:
    """Of one etcd cluster; `prefix` is what all our keys begin with."""

    def __init__(self, client: EtcdClient, prefix: bytes, quota_bytes: int = QUOTA_BYTES) -> None:
        self._client, self._prefix, self._quota_bytes = client, prefix, quota_bytes
        self._not_before_s = self._no_compaction_before_s = 0.0

    async def tend(self) -> float:
        """Compacts the history when the file is large; returns the share of the quota that data needs. StoreError."""
        size, used, quota = await self._sizes()
        if size < COMPACT_FROM * quota:
            return used / quota
        revision, foreign = await self._count_foreign_keys()
        now_s = time.monotonic()
        if not foreign and used >= COMPACT_FROM * quota and now_s >= self._no_compaction_before_s:
            self._no_compaction_before_s = now_s + COMPACT_AGAIN_S
            await self._compact(revision)
            before, (_, used, _) = used, await self._sizes()
            log.info("etcd compacted", revision=revision, quota=quota, bytes_before=before, bytes_after=used)
        elif not foreign and size >= DEFRAGMENT_FROM * quota and used < (1 - LITTLE) * size:
            await self.reclaim()
        return used / quota

    async def _sizes(self) -> tuple[int, int, int]:
        """Bytes of the largest member's file, bytes of it in use, and the quota."""
        states = []
        for index in range(len(self._client.endpoints)):
            with contextlib.suppress(StoreUnavailableError):
                states.append(await self._client.call_at(index, "Status", pb.StatusRequest(), REQUEST_S))
        if not states:
            raise StoreUnavailableError("no member of etcd says how large it is")
        quotas = [state.dbSizeQuota for state in states if state.dbSizeQuota > 0]
        quota = min(quotas, default=self._quota_bytes)
        return max(state.dbSize for state in states), max(state.dbSizeInUse for state in states), quota

    async def reclaim(self) -> str:
        """Tries to make a full etcd writable again. Returns what came of it, for the message of StoreFullError.

        Never raises: the store is full either way, and the next commit shows whether it still is.
        """
        now_s = time.monotonic()
        if now_s < self._not_before_s:
            return "space was reclaimed a moment ago, or could not be: see the log"
        self._not_before_s = now_s + AGAIN_AFTER_LITTLE_S
        try:
            share, outcome = await self._reclaim()
        except StoreError as error:
            share, outcome = 0.0, f"reclaiming space failed: {error}"
        if share >= LITTLE:
            self._not_before_s = time.monotonic() + AGAIN_S
        log.error("etcd has exceeded its quota, or nearly", outcome=outcome)
        return outcome

    async def _reclaim(self) -> tuple[float, str]:
        """(share of the space that was freed, what was done)."""
        revision, foreign = await self._count_foreign_keys()
        if foreign:
            return 0.0, (
                f"{foreign} keys in this etcd are not agentserving's, so its history is left alone: compact, defragment"
                " and disarm the alarm with etcdctl, or raise --quota-backend-bytes"
            )
        await self._compact(revision)
        before, after = await self._defragment()
        alarms = pb.AlarmRequest(action=pb.AlarmRequest.GET, alarm=pb.NOSPACE)
        for alarm in (await self._client.call("Alarm", alarms, REQUEST_S)).alarms:
            disarm = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=pb.NOSPACE)
            await self._client.call("Alarm", disarm, REQUEST_S)
        done = f"compacted to revision {revision}, defragmented from {before} to {after} bytes, alarms disarmed"
        return 1 - after / max(before, 1), done

    async def _count_foreign_keys(self) -> tuple[int, int]:
        """(current revision, number of keys outside our prefix)."""
        every = pb.RangeRequest(key=b"\0", range_end=b"\0", count_only=True)
        total = await self._client.call("Range", every, REQUEST_S)
        ours = pb.RangeRequest(
            key=self._prefix,
            range_end=prefix_end(self._prefix),
            count_only=True,
            revision=total.header.revision,
        )
        own = await self._client.call("Range", ours, REQUEST_S)
        return total.header.revision, total.count - own.count

    async def _compact(self, revision: int) -> None:
        request = pb.CompactionRequest(revision=revision, physical=True)
        try:
            await self._client.call("Compact", request, COMPACTION_S)
        except StoreError as error:
            # Compacted already, perhaps by an attempt whose response was lost; defragmentation shows the effect.
            log.info("compaction of etcd", result=str(error))

    async def _defragment(self) -> tuple[int, int]:
        """Bytes before and after, at all endpoints that answer; the raft leader last, as it stops every write."""
        states: list[tuple[bool, int, int]] = []
        for index, endpoint in enumerate(self._client.endpoints):
            try:
                status = await self._client.call_at(index, "Status", pb.StatusRequest(), REQUEST_S)
            except StoreError as error:
                log.warning("member of etcd does not answer, not defragmented", endpoint=endpoint, error=str(error))
                continue
            states.append((status.leader == status.header.member_id, index, status.dbSize))
        after = 0
        for _, index, _ in sorted(states):
            await self._client.call_at(index, "Defragment", pb.DefragmentRequest(), DEFRAGMENTATION_S)
            after += (await self._client.call_at(index, "Status", pb.StatusRequest(), REQUEST_S)).dbSize
        return sum(size for _, _, size in states), after


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys with a prefix."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
