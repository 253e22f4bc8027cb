"""Host memory behind the fake runner's KV: vLLM's own OffloadingConnector on both sides, with copies between dicts.

The scheduler decides what is stored and loaded; vLLM's worker side gets its transfers as in a model runner
(v1/worker/kv_connector_model_runner_mixin.py). The runner reads every context back, so a block that is loaded with
other content fails immediately.
"""

from __future__ import annotations

from typing import Any

from vllm.config import KVTransferConfig, VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.outputs import KVConnectorOutput

KV = dict[tuple[int, int], int]


def transfer_config(host_bytes: int) -> KVTransferConfig:
    """What `--kv-offloading-size` becomes."""
    return KVTransferConfig(
        kv_connector="OffloadingConnector",
        kv_role="kv_both",
        kv_connector_extra_config={"cpu_bytes_to_use": host_bytes},
    )


class _Copies(OffloadingWorker):
    """Transfers have ended when they are submitted."""

    def __init__(self, engine: KV, block_size: int) -> None:
        self._engine, self._host, self._block_size = engine, KV(), block_size
        self._ended: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, self._engine, src_spec, self._host, dst_spec)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any, expedited: bool = False) -> bool:
        return self._copy(job_id, self._host, src_spec, self._engine, dst_spec)

    def _copy(self, job_id: int, source: KV, source_spec: Any, target: KV, target_spec: Any) -> bool:
        for here, there in zip(source_spec.block_ids.tolist(), target_spec.block_ids.tolist(), strict=True):
            for at in range(self._block_size):
                target[there, at] = source[here, at]
        self._ended.append(TransferResult(job_id=job_id, success=True))
        return True

    def get_finished(self) -> list[TransferResult]:
        ended, self._ended = self._ended, []
        return ended

    def wait(self, job_ids: set[int]) -> None:
        pass


class HostMemory:
    """The worker side of the connector: `before` and `after` each step of the runner."""

    def __init__(self, config: VllmConfig, kv_cache_config: KVCacheConfig, kv: KV, block_size: int) -> None:
        self._side = OffloadingConnector(config, KVConnectorRole.WORKER, kv_cache_config).connector_worker
        self._side.worker = _Copies(kv, block_size)

    def before(self, output: Any) -> None:
        """What must be there for the step."""
        self._side.handle_preemptions(output.kv_connector_metadata)
        self._side.start_kv_transfers(output.kv_connector_metadata)

    def after(self, output: Any) -> KVConnectorOutput:
        """What the step has written is stored; the transfers that have ended."""
        self._side.prepare_store_kv(output.kv_connector_metadata)
        sent, received = self._side.get_finished(output.finished_req_ids)
        return KVConnectorOutput(
            finished_sending=sent or None,
            finished_recving=received or None,
            kv_connector_worker_meta=self._side.build_connector_worker_meta(),
        )
