"""What a case's engine is: its size, its layers, how its steps overlap, and vLLM's configuration for all that."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from typing import Any

import torch
from engine.versions.fake_runner import BLOCK_SIZE
from engine.versions.host_memory import transfer_config
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    SlidingWindowSpec,
)

SIZES: dict[str, Any] = {"block_size": BLOCK_SIZE, "num_kv_heads": 1, "head_size": 64, "dtype": torch.float32}
PAGE_BYTES = FullAttentionSpec(**SIZES).page_size_bytes


@dataclass(frozen=True)
class Pipeline:
    """How steps overlap and which model runner the scheduler output is made for."""

    name: str
    asynchronous: bool
    v2: bool


PIPELINES = {
    pipeline.name: pipeline
    for pipeline in (
        Pipeline("sync-runner1", False, False),
        Pipeline("sync-runner2", False, True),
        Pipeline("async-runner1", True, False),
        Pipeline("async-runner2", True, True),
    )
}


@dataclass(frozen=True)
class Options:
    """Options of a case's engine. `blocks` of 16 tokens; `budget` tokens a step, so longer prompts are chunked."""

    slots: int = 4
    blocks: int = 400
    budget: int = 256
    prefix_caching: bool = True
    tokenizer: bool = False
    lora_slots: int = 0
    queue: str = "fcfs"
    # As with a KV connector that loads: what a step in flight may still write to is freed when that step is over.
    late_frees: bool = False
    # Of host memory behind vLLM's OffloadingConnector, of an engine with one group; 0 = no connector.
    host_blocks: int = 0
    # The plugin's settings of the same names.
    unticketed: str = "last"
    tenant_cache: str = "separate"
    # Which of how many data-parallel ranks of a dense model.
    rank: int = 0
    ranks: int = 1
    # A group of layers for each: how many tokens back its layers look, 0 = all.
    windows: tuple[int, ...] = (0,)


def make_config(options: Options, asynchronous: bool) -> VllmConfig:
    """A small engine's configuration."""
    length = 2048
    model = ModelConfig(
        model=os.environ["AGENTSERVING_TEST_MODEL"],
        dtype="float32",
        seed=0,
        max_model_len=length,
        skip_tokenizer_init=not options.tokenizer,
    )
    scheduler = SchedulerConfig(
        max_num_seqs=options.slots,
        max_num_batched_tokens=options.budget,
        max_model_len=length,
        enable_chunked_prefill=True,
        async_scheduling=asynchronous,
        is_encoder_decoder=False,
        policy=options.queue,  # type: ignore[arg-type]
    )
    cache = CacheConfig(
        block_size=BLOCK_SIZE,
        gpu_memory_utilization=0.9,
        cache_dtype="auto",
        enable_prefix_caching=options.prefix_caching,
    )
    extra: dict[str, Any] = {}
    if options.host_blocks:
        extra["kv_transfer_config"] = transfer_config(options.host_blocks * PAGE_BYTES)
    if options.lora_slots:
        from vllm.config import LoRAConfig

        extra["lora_config"] = LoRAConfig(max_loras=options.lora_slots, max_lora_rank=8)
    config = VllmConfig(
        scheduler_config=scheduler,
        model_config=model,
        cache_config=cache,
        device_config=DeviceConfig(device="cpu"),
        **extra,
    )
    # The platform turns asynchronous scheduling off on a CPU; nothing of it depends on the device here.
    scheduler.async_scheduling = asynchronous
    cache.num_gpu_blocks = options.blocks
    # As EngineCoreProc.run_engine_core leaves it: the size of each rank is one.
    config.parallel_config.data_parallel_index = options.rank
    return config


def make_kv_cache(options: Options) -> KVCacheConfig:
    """One pool of blocks for all groups of layers."""
    specs = [
        SlidingWindowSpec(**SIZES, sliding_window=window) if window else FullAttentionSpec(**SIZES)
        for window in options.windows
    ]
    groups = [KVCacheGroupSpec([f"layer{number}"], spec) for number, spec in enumerate(specs)]
    tensors = [_tensor(options.blocks)] if options.host_blocks else []
    return KVCacheConfig(num_blocks=options.blocks, kv_cache_tensors=tensors, kv_cache_groups=groups)


def _tensor(blocks: int) -> KVCacheTensor:
    """The allocation of the first layer, in the fields that the version has."""
    fields = inspect.signature(KVCacheTensor).parameters
    known = {
        "size": PAGE_BYTES * blocks, "shared_by": ["layer0"], "layers": ["layer0"], "layer_stride": PAGE_BYTES * blocks,
        "block_stride": 0 if "shared_by" in fields else PAGE_BYTES,
    }  # fmt: skip
    return KVCacheTensor(**{name: known[name] for name in fields if name in known})
