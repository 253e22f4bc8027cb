"""Host memory behind the KV cache of a CPU vLLM, for benchmarks: runs inside the engine (`--kv-transfer-config`).

vLLM's `--kv-offloading-size` refuses to start on a CPU: only its copies between the cache and host memory need a GPU
(v1/kv_offload/cpu/spec.py, `get_worker`). Its connector, its scheduling of loads and stores and its least-recently-used
tier do not. So this is vLLM's own offloading with another worker: blocks are copied by PyTorch, in the engine's thread.
On a GPU they are copied beside the computation, so here the host tier costs more.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class HostCopies(OffloadingWorker):
    """Copies blocks of one KV cache group; a transfer has ended when it is submitted."""

    def __init__(self, caches: CanonicalKVCaches, chunks: int) -> None:
        self._engine = [each.tensor for each in caches.tensors]
        self._host = [torch.zeros((chunks, each.shape[1]), dtype=each.dtype) for each in self._engine]
        self._ended: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """From the engine's cache to host memory."""
        return self._copy(job_id, self._engine, src_spec, self._host, dst_spec)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """From host memory to the engine's cache."""
        return self._copy(job_id, self._host, src_spec, self._engine, dst_spec)

    def _copy(
        self, job_id: int, source: list[torch.Tensor], source_spec: Any, target: list[torch.Tensor], target_spec: Any
    ) -> bool:
        source_rows, target_rows = (torch.from_numpy(spec.block_ids).long() for spec in (source_spec, target_spec))
        for ours, theirs in zip(target, source, strict=True):
            ours[target_rows] = theirs[source_rows]
        self._ended.append(TransferResult(job_id=job_id, success=True))
        return True

    def get_finished(self) -> list[TransferResult]:
        """Transfers that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def wait(self, job_ids: set[int]) -> None:
        """Nothing: all submitted transfers have ended."""


class HostKv(CPUOffloadingSpec):
    """vLLM's tier in host memory with `HostCopies`."""

    _copies: HostCopies | None = None

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """The worker, made once. ValueError for caches that it cannot copy."""
        if self.blocks_per_chunk != 1 or len(kv_caches.group_data_refs) != 1:
            raise ValueError("HostKv copies single blocks of one KV cache group only")
        self._copies = self._copies or HostCopies(kv_caches, self.num_chunks)
        return self._copies
