"""Histograms of calls and programs: what is counted, where, and that their number has a bound."""

from __future__ import annotations

import pytest
from agentserving.contract.phases import PhaseKind
from agentserving.contract.service_class import SERVICE_CLASSES, ServiceClass
from agentserving_controlplane.metrics import exposition
from agentserving_controlplane.table.distributions import MAX_SERIES, Histogram
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.states import Outcome
from controlplane.table_builders import DEFAULT, S, admit, at, end, open_program, report_of
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from support.served_plane import ServedPlane

MS, STANDARD = 1000, ServiceClass.STANDARD
PHASES = (
    (PhaseKind.QUEUE, 300 * MS), (PhaseKind.PREFILL, 100 * MS), (PhaseKind.DECODE, 400 * MS),
    (PhaseKind.PREEMPTED, 500 * MS), (PhaseKind.DECODE, 200 * MS),
)  # fmt: skip


@given(st.lists(st.floats(0, 10, allow_nan=False)))
def test_a_histogram_counts_each_value_up_to_its_bound(values: list[float]) -> None:
    bounds = (0.5, 1, 5)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    expected = [sum(value <= bound for value in values) for bound in bounds] + [len(values)]
    assert [count for _, count in histogram.cumulative] == expected
    assert [name for name, _ in histogram.cumulative] == ["0.5", "1.0", "5.0", "+Inf"]
    assert histogram.total == pytest.approx(sum(values))


def test_a_calls_wait_first_token_and_pace_are_those_of_its_phases() -> None:
    table = ProcessTable(1)
    row = open_program(table, "p", name="coder")
    call = admit(table, "p", gateway_us=20 * MS)
    table.report(report_of(call, "p", phases=PHASES, output_tokens=12), at(2 * S))
    table.programs.close(row, Outcome.COMPLETED, at(5 * S))
    series = table.totals.times.distributions.series[DEFAULT, "coder", STANDARD]
    assert series.wait.total == pytest.approx(0.82)
    assert series.first_token.total == pytest.approx(0.42)
    # 1.1 s from the first token to the last one, the preemption included, for eleven more tokens.
    assert series.output_token.total == pytest.approx(0.1)
    assert series.program.total == pytest.approx(5)
    assert series.slowdown.total == pytest.approx((0.7 + 0.82) / 0.7)


def test_calls_without_a_token_or_a_report_have_no_pace() -> None:
    table = ProcessTable(1)
    row = open_program(table, "p")
    table.report(report_of(admit(table, "p"), "p", phases=PHASES[:1], outcome=Outcome.CANCELLED), at(1))
    end(table, "p", admit(table, "p").call_id)
    series = table.totals.times.distributions.series[DEFAULT, "", STANDARD]
    assert sum(series.wait.counts) == 1
    assert sum(series.first_token.counts) == sum(series.output_token.counts) == 0
    table.programs.close(row, Outcome.COMPLETED, at(S))
    assert sum(series.slowdown.counts) == 0, "nothing was computed"


def test_a_program_without_calls_is_not_counted() -> None:
    table = ProcessTable(1)
    table.programs.close(open_program(table, "p"), Outcome.CANCELLED, at(S))
    assert not table.totals.times.distributions.series


def test_however_many_classes_there_are_their_series_have_a_bound() -> None:
    table = ProcessTable(1)
    for number in range(MAX_SERIES + 5):
        open_program(table, f"p{number}", name=f"class-{number}")
        table.report(report_of(admit(table, f"p{number}"), f"p{number}", phases=PHASES), at(1))
    series = table.totals.times.distributions.series
    assert len(series) == MAX_SERIES + 1
    assert sum(sum(each.wait.counts) for each in series.values()) == MAX_SERIES + 5
    assert sum(series["other", "other", STANDARD].wait.counts) == 5  # type: ignore[index]
    for kind in SERVICE_CLASSES:
        for number in range(3):
            name = f"{kind.label}-{number}"
            open_program(table, name, name=name, service_class=kind)
            table.report(report_of(admit(table, name), name, phases=PHASES), at(1))
    assert len(series) == MAX_SERIES + len(SERVICE_CLASSES), "the others of each class of service are told apart"


async def test_metrics_have_them_as_prometheus_expects() -> None:
    async with ServedPlane() as served:
        table = served.plane.table
        open_program(table, "p", name='a "class"\n')
        call = admit(table, "p")
        used = {"service_us": 500_000, "prompt_tokens": 100, "cached_tokens": 60, "output_tokens": 12}
        table.report(report_of(call, "p", phases=PHASES, **used), at(1))
        page = exposition(served.plane).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    samples = families["agentserving_call_wait_seconds"].samples
    found = {sample.labels.get("le", sample.name): sample.value for sample in samples}
    assert (found["0.5"], found["1.0"], found["+Inf"]) == (0, 1, 1)
    assert found["agentserving_call_wait_seconds_sum"] == pytest.approx(0.8)
    assert samples[0].labels["class"] == 'a "class"\n'
    tokens = families["agentserving_usage_tokens"].samples
    assert {each.labels["kind"]: each.value for each in tokens} == {"prompt": 100, "cached": 60, "output": 12}
    for name, value in (("calls", 1), ("engine_seconds", 0.5)):
        (sample,) = families[f"agentserving_usage_{name}"].samples
        assert (sample.value, sample.labels["class"]) == (value, 'a "class"\n')
    assert families["agentserving_budgets_spent"].samples[0].value == 0
