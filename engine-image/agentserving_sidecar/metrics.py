"""What the sidecar's /metrics tells of itself and of its engine. Read when asked; base units."""

from __future__ import annotations

from collections.abc import Iterator

from agentserving.contract.channel import Load
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as CollectorBase

from agentserving_sidecar.sidecar import Sidecar

# (metric, what it counts, field of Load, divisor)
_GAUGES = (
    ("running_calls", "calls that run", "running", 1),
    ("waiting_calls", "calls that queue", "waiting", 1),
    ("kv_blocks", "KV blocks in all", "total_blocks", 1),
    ("free_kv_blocks", "KV blocks that no call holds", "free_blocks", 1),
    ("kept_kv_blocks", "of the free ones, those kept for programs whose tools work", "kept_blocks", 1),
    (
        "held_back_calls",
        "waiting calls that do not fit beside what is kept, as far as was looked",
        "behind_kept",
        1,
    ),
    ("last_step_age_seconds", "since the last step ended", "last_step_age_us", 1e6),
)
_COUNTERS = (
    ("steps", "engine iterations", "steps", 1),
    ("promotions", "calls lifted to level 0", "promotions", 1),
    ("demotions", "calls whose quantum was spent", "demotions", 1),
    ("unmanaged_calls", "calls without a ticket", "unmanaged_calls", 1),
    ("rejected_tickets", "tickets forged, expired or replayed", "rejected_tickets", 1),
    ("policy_seconds", "time spent in the policy", "policy_time_us", 1e6),
    ("prompt_tokens", "tokens of prompts", "prompt_tokens", 1),
    ("cached_tokens", "of these found in the prefix cache", "cached_tokens", 1),
    ("output_tokens", "tokens made", "output_tokens", 1),
    ("hook_errors", "hooks that fell back to stock behaviour", "hook_errors", 1),
)


class Collector(CollectorBase):
    """Over one sidecar."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    def collect(self) -> Iterator[Metric]:
        """Metric families; no label is unbounded."""
        sidecar = self._sidecar
        journal = sidecar.journal
        for name, text, value in (
            ("unacked_reports", "terminal reports that the control plane has not acknowledged", len(journal.unacked)),
            ("attached", "1 = attached to the control plane", bool(sidecar.leader and sidecar.leader.attached)),
            ("engine_connected", "1 = the plugin is connected", sidecar.engine_present),
            ("engine_stuck", "1 = calls run and no step ends, or the plugin is silent", sidecar.stuck),
        ):
            yield GaugeMetricFamily(f"agentserving_sidecar_{name}", text, float(value))
        corrupt = "journal frames with a wrong checksum"
        yield CounterMetricFamily("agentserving_sidecar_corrupt_frames", corrupt, journal.corrupt_frames)
        if sidecar.load is not None:
            yield from _engine(sidecar.load)


def _engine(load: Load) -> Iterator[Metric]:
    for name, text, field, divisor in _GAUGES:
        yield GaugeMetricFamily(f"agentserving_engine_{name}", text, getattr(load, field) / divisor)
    for name, text, field, divisor in _COUNTERS:
        yield CounterMetricFamily(f"agentserving_engine_{name}", text, getattr(load, field) / divisor)
    preemptions = CounterMetricFamily("agentserving_engine_preemptions", "calls put back to waiting", labels=["cause"])
    preemptions.add_metric(["policy"], load.preemptions_proactive)
    preemptions.add_metric(["memory"], load.preemptions_reactive)
    yield preemptions
