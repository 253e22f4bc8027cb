"""/metrics of a control plane. Nothing is counted twice: the collector reads the leader's state when it is scraped.

Labels are bounded: outcomes and states are closed enums, an engine's series disappear when the registry forgets it, and
histograms have series for so many tenants and classes and then one for all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from agentserving.contract.ids import Tenant
from agentserving.contract.phases import PrefixMiss
from agentserving.contract.service_class import ServiceClass
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector as CollectorBase

from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.engines.health import EngineState
from agentserving_controlplane.policy.auto import Chosen
from agentserving_controlplane.table.distributions import Histogram, Series
from agentserving_controlplane.table.rows import TimeRow


class Collector(CollectorBase):
    """Reads the leader's state; without one, this process follows."""

    def __init__(self, plane: ControlPlane | None, refusals: Mapping[str, int]) -> None:
        self._plane, self._refusals = plane, refusals

    def collect(self) -> Iterator[Metric]:
        """Metric families."""
        plane = self._plane
        yield GaugeMetricFamily("agentserving_leader", "1 = this control plane leads", int(plane is not None))
        refused = CounterMetricFamily(
            "agentserving_access_refusals", "RPCs of callers who were not let in", labels=["reason"]
        )
        for reason, count in self._refusals.items():
            refused.add_metric([reason.lower()], count)
        yield refused
        if plane is not None:
            yield from _programs(plane)
            yield from _times(plane)
            yield from _distributions(plane)
            yield from _store(plane)
            yield from _engines(plane)
            yield from _demand(plane)


def _programs(plane: ControlPlane) -> Iterator[Metric]:
    for name, value in plane.overview().items():
        yield GaugeMetricFamily(f"agentserving_{name}", name.replace("_", " "), value)
    index, totals = plane.table.index, plane.table.totals
    for name, text, value in (
        ("agentserving_closed_programs", "Closed programs that are retained", len(index.closed)),
        ("agentserving_paused_programs", "Programs whose trees are paused", index.paused_of.total),
        ("agentserving_spent_programs", "Trees that wait because their budgets are spent", len(index.spent)),
        ("agentserving_unreadable_rows", "Rows of the store that recovery could not read", plane.unreadable_rows),
    ):
        yield GaugeMetricFamily(name, text, value)
    for name, text, count in (
        ("agentserving_programs_completed", "Programs ended", totals.programs_completed),
        ("agentserving_budgets_spent", "Trees of programs that have spent their budgets", totals.budgets_spent),
        ("agentserving_reports_ignored", "Reports that changed nothing", totals.reports_ignored),
        ("agentserving_reports_refused", "Reports about calls of other engines", totals.reports_refused),
        ("agentserving_calls_adopted", "Calls found running after a crash", totals.calls_adopted),
        ("agentserving_endings_lost", "Endings that a watcher read too slowly to get", plane.endings.lost),
    ):
        yield CounterMetricFamily(name, text, count)
    calls = CounterMetricFamily("agentserving_calls_completed", "Calls ended", labels=["outcome"])
    for outcome, count in totals.outcomes.items():
        calls.add_metric([outcome.name.lower()], count)
    yield calls
    yield GaugeMetricFamily("agentserving_policy_version", "Version of the policy in force", plane.policy.version)
    classes = GaugeMetricFamily(
        "agentserving_policy_classes", "Classes of programs for which auto has chosen a preset", labels=["chosen"]
    )
    for chosen in Chosen:
        classes.add_metric([chosen], sum(choice.chosen is chosen for choice in plane.policy_in_force.choices))
    yield classes


def _times(plane: ControlPlane) -> Iterator[Metric]:
    totals = plane.table.totals.times
    seconds = CounterMetricFamily(
        "agentserving_call_time_seconds", "Time of finished calls by phase, and between calls", labels=["phase"]
    )
    for name in TimeRow.__struct_fields__:
        seconds.add_metric([name.removesuffix("_us")], getattr(totals.times, name) / 1e6)
    yield seconds
    calls = CounterMetricFamily(
        "agentserving_prefix_misses", "Finished calls by what became of their prefix", labels=["reason"]
    )
    lost = CounterMetricFamily(
        "agentserving_prefix_lost_tokens", "Tokens evicted between two calls of a program and computed again"
    )
    for miss in PrefixMiss:
        calls.add_metric([miss.name.lower()], totals.misses.get(miss, (0, 0))[0])
    lost.add_metric([], sum(tokens for _, tokens in totals.misses.values()))
    spans = CounterMetricFamily(
        "agentserving_span_endings", "Ended calls, tool waits and programs, by what became of their spans",
        labels=["result"],
    )  # fmt: skip
    for result, count in plane.span_counts.items():
        spans.add_metric([result], count)
    yield from (calls, lost, spans)


def _distributions(plane: ControlPlane) -> Iterator[Metric]:
    series = plane.table.totals.times.distributions.series
    for name, attribute, text in (
        (
            "agentserving_call_wait_seconds",
            "wait",
            "Time of a call in which it was not computed: gateway, held, queue, preempted",
        ),
        ("agentserving_call_first_token_seconds", "first_token", "From the request at the gateway to its first token"),
        ("agentserving_call_output_token_seconds", "output_token", "Time between two tokens of a call, its average"),
        ("agentserving_program_seconds", "program", "From the opening of a program to its end"),
        (
            "agentserving_program_slowdown_ratio",
            "slowdown",
            "A program's time in calls by the time computed for them; 1 = no wait",
        ),
    ):
        family = HistogramMetricFamily(name, text, labels=["tenant", "class", "service_class"])
        for (tenant, class_name, service_class), each in series.items():
            histogram: Histogram = getattr(each, attribute)
            family.add_metric([tenant, class_name, service_class.label], histogram.cumulative, histogram.total)
        yield family
    yield from _usage(series)


def _usage(series: Mapping[tuple[Tenant, str, ServiceClass], Series]) -> Iterator[Metric]:
    """What calls have used, for bills and budgets of tenants."""
    labels = ["tenant", "class", "service_class"]
    calls = CounterMetricFamily("agentserving_usage_calls", "Ended calls that an engine has reported", labels=labels)
    tokens = CounterMetricFamily(
        "agentserving_usage_tokens", "Their tokens; cached is part of prompt", labels=[*labels, "kind"]
    )
    seconds = CounterMetricFamily("agentserving_usage_engine_seconds", "Model execution of these calls", labels=labels)
    for (tenant, class_name, service_class), each in series.items():
        named = [tenant, class_name, service_class.label]
        calls.add_metric(named, each.calls)
        for kind in ("prompt", "cached", "output"):
            tokens.add_metric([*named, kind], getattr(each, f"{kind}_tokens"))
        seconds.add_metric(named, each.engine_us / 1e6)
    yield from (calls, tokens, seconds)


def _store(plane: ControlPlane) -> Iterator[Metric]:
    commits = plane.commits
    yield CounterMetricFamily("agentserving_store_commits", "Group commits landed", commits.commits)
    yield GaugeMetricFamily("agentserving_store_pending_writes", "Writes that have not landed", commits.pending)
    yield GaugeMetricFamily("agentserving_store_fill_ratio", "Share of the store's space in use", plane.store_fill)
    yield GaugeMetricFamily(
        "agentserving_store_went_back", "1 = engines have seen a later epoch", int(plane.later_epoch > 0)
    )
    yield GaugeMetricFamily("agentserving_store_healthy", "1 = the store takes writes", int(commits.healthy))


def _engines(plane: ControlPlane) -> Iterator[Metric]:
    in_flight = GaugeMetricFamily("agentserving_engine_calls_in_flight", "Calls on an engine", labels=["engine"])
    ready = GaugeMetricFamily("agentserving_engine_ready", "1 = the engine takes any call", labels=["engine"])
    states = GaugeMetricFamily(
        "agentserving_engine_state", "1 for the state that the engine is in", labels=["engine", "state"]
    )
    for engine in plane.engines:
        state = engine.state
        in_flight.add_metric([engine.engine_id], engine.in_flight)
        ready.add_metric([engine.engine_id], int(state is EngineState.READY))
        for each in EngineState:
            states.add_metric([engine.engine_id, each.name.lower()], int(state is each))
    yield from (in_flight, ready, states)


def _demand(plane: ControlPlane) -> Iterator[Metric]:
    demand = plane.demand()
    signals, needed = demand.signals, demand.needed
    for name, text, value in (
        ("agentserving_programs_waiting", "Programs with calls of which none runs", demand.waiting_programs),
        (
            "agentserving_programs_held",
            "Programs whose calls gateways hold for want of an engine",
            signals.held_programs,
        ),
        ("agentserving_calls_held", "Calls that gateways hold for want of an engine", signals.held_calls),
        ("agentserving_context_tokens", "Context of live programs in tokens", signals.context_tokens),
        ("agentserving_engine_context_tokens", "Tokens in the KV cache of one engine", demand.size.context_tokens),
        ("agentserving_owed_service_seconds", "Service predicted for the next minute", signals.owed_us / 1e6),
    ):
        yield GaugeMetricFamily(name, text, value)
    found = GaugeMetricFamily("agentserving_engines_needed", "Full engines that programs need", labels=["signal"])
    for signal in ("context", "calls", "service"):
        found.add_metric([signal], getattr(needed, signal))
    found.add_metric(["waiting"], demand.lasting_waiting)
    yield found


def exposition(plane: ControlPlane | None, refusals: Mapping[str, int] = MappingProxyType({})) -> bytes:
    """The page: the control plane's own metrics, and those of the process. `refusals`: of callers, by reason."""
    registry = CollectorRegistry()
    registry.register(Collector(plane, refusals))
    return generate_latest(registry) + generate_latest(REGISTRY)
