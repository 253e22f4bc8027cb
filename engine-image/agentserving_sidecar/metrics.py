"""Metrics of the sidecar and of its engine, read when Prometheus asks for them; base units."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from agentserving.contract.channel import EngineHello, Load
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as CollectorBase

from agentserving_sidecar.health import State
from agentserving_sidecar.sidecar import Sidecar


class _Field(NamedTuple):
    """A metric that is a field of Load, divided by `divisor` to give base units."""

    metric: str
    help: str
    field: str
    divisor: float = 1


_GAUGES = (
    _Field("running_calls", "calls that are running", "running"),
    _Field("waiting_calls", "calls in the queue", "waiting"),
    _Field("kv_blocks", "KV blocks in all", "total_blocks"),
    _Field("free_kv_blocks", "KV blocks that no call holds", "free_blocks"),
    _Field("kept_kv_blocks", "of the free ones, those retained for programs in a tool wait", "kept_blocks"),
    _Field("held_back_calls", "waiting calls deferred because of retained blocks, as of the last look", "behind_kept"),
    _Field("last_step_age_seconds", "time since the last step ended", "last_step_age_us", 1e6),
    _Field("prefill_seconds_per_token", "cost of one prompt token; 0 = not measured", "prefill_us_per_token", 1e6),
)
_COUNTERS = (
    _Field("steps", "engine iterations", "steps"),
    _Field("promotions", "calls promoted to level 0", "promotions"),
    _Field("demotions", "calls whose quantum was spent", "demotions"),
    _Field("unmanaged_calls", "calls without a ticket", "unmanaged_calls"),
    _Field("rejected_tickets", "tickets forged, expired or replayed", "rejected_tickets"),
    _Field("policy_seconds", "time spent in the policy", "policy_time_us", 1e6),
    _Field("prompt_tokens", "prompt tokens", "prompt_tokens"),
    _Field("cached_tokens", "prompt tokens found in the prefix cache", "cached_tokens"),
    _Field("output_tokens", "generated tokens", "output_tokens"),
    _Field("hook_errors", "hooks that fell back to stock behaviour", "hook_errors"),
)


class Collector(CollectorBase):
    """Metrics of one sidecar."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    def collect(self) -> Iterator[Metric]:
        """Metric families; no label is unbounded."""
        sidecar = self._sidecar
        engine, journal = sidecar.engine, sidecar.journal
        for name, text, value in (
            ("unacked_reports", "terminal reports that the control plane has not acknowledged", len(journal.unacked)),
            ("attached", "1 = attached to the control plane", bool(sidecar.leader and sidecar.leader.attached)),
            ("engine_connected", "1 = the scheduler plugin is connected", engine.is_connected),
            ("engine_stuck", "1 = the engine makes no progress", engine.health.state is State.STUCK),
        ):
            yield GaugeMetricFamily(f"agentserving_sidecar_{name}", text, float(value))
        health = GaugeMetricFamily(
            "agentserving_sidecar_engine_health", "1 = the state of the engine", labels=["state"]
        )
        for state in State:
            health.add_metric([state.value], float(engine.health.state is state))
        yield health
        corrupt = "journal records that were damaged and could not be read"
        yield CounterMetricFamily("agentserving_sidecar_corrupt_records", corrupt, journal.corrupt_records)
        if engine.hello is not None:
            yield _obstacles(engine.hello)
        if engine.load is not None:
            yield from _engine(engine.load)


def _obstacles(hello: EngineHello) -> Metric:
    obstacles = GaugeMetricFamily(
        "agentserving_engine_policy_obstacle",
        "1 = the engine does not do this part of a policy, and why",
        labels=["feature", "reason"],
    )
    for feature, reason in (("retention", hello.retention_obstacle), ("working_set", hello.working_set_obstacle)):
        if reason:
            obstacles.add_metric([feature, reason], 1)
    return obstacles


def _engine(load: Load) -> Iterator[Metric]:
    for gauge in _GAUGES:
        value = getattr(load, gauge.field) / gauge.divisor
        yield GaugeMetricFamily(f"agentserving_engine_{gauge.metric}", gauge.help, value)
    for counter in _COUNTERS:
        value = getattr(load, counter.field) / counter.divisor
        yield CounterMetricFamily(f"agentserving_engine_{counter.metric}", counter.help, value)
    preemptions = CounterMetricFamily("agentserving_engine_preemptions", "calls put back to waiting", labels=["cause"])
    preemptions.add_metric(["policy"], load.preemptions_proactive)
    preemptions.add_metric(["memory"], load.preemptions_reactive)
    yield preemptions
