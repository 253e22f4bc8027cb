"""A run as a timeline of text: a line a call, on one axis. Readable without colours. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from agentserving.client.times import TimeSplit
from agentserving.client.traces import Trace
from agentserving.client.values import PauseCause, Program
from agentserving.contract.phases import PhaseKind, PrefixMiss
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from agentserving_cli.screens import count, cut, seconds
from agentserving_cli.top_view import received
from agentserving_cli.traces.spans import (
    CallSpans,
    Kind,
    ProgramSpans,
    Span,
    bounds_us,
    prefix_words,
    program_spans,
)

# Of each kind: its character and colour. Of equal parts of a character the later kind is shown.
LOOKS: dict[Kind, tuple[str, str]] = {
    Kind.REPORT: ("·", "dim"),
    Kind.TRAVEL: ("·", "dim"),
    Kind.GATEWAY: ("g", "magenta"),
    Kind.TOOLS: ("─", "dim"),
    Kind.DECODE: ("█", "green"),
    Kind.PREFILL: ("▓", "cyan"),
    Kind.QUEUE: ("░", "yellow"),
    Kind.HELD: ("h", "magenta"),
    Kind.PREEMPTED: ("x", "red"),
}
_LEGEND = (Kind.GATEWAY, Kind.HELD, Kind.QUEUE, Kind.PREFILL, Kind.DECODE, Kind.PREEMPTED, Kind.TOOLS)
# Less of a kind is not worth a line of the sums.
SHOWN_US = 5_000
# Columns other than the bars: number, engine, length, prefix, and the gaps.
_NUMBER, _ENGINE, _LENGTH, _PREFIX = 4, 8, 6, 17
_GAPS = 4
_SPLIT_BAR = 24


def timeline_screen(trace: Trace, width: int, most_calls: int) -> Group:
    """The whole run: where its time went, then a line a call, the newest `most_calls` of each program."""
    programs = program_spans(trace)
    begin_us, end_us = bounds_us(programs)
    room = max(20, width - _NUMBER - _ENGINE - _LENGTH - _PREFIX - _GAPS)
    axis = _Axis(begin_us, max(end_us, begin_us + 1), room)
    parts: list[RenderableType] = [_headline(programs[0], end_us - begin_us), "", time_table(trace.programs[0].program)]
    if not any(each.calls for each in programs):
        return Group(*parts, "", "no call of it is known: it has made none, or the control plane has restarted since")
    parts += ["", _legend(), Text(" " * (_NUMBER + _ENGINE + 2) + axis.labels())]
    for index, each in enumerate(programs):
        if index:
            parts.append(Text(cut(_title(each.trace.program), width), style="bold"))
        parts += _lines(each, axis, most_calls)
    if trace.programs_left_out:
        parts.append(f"[dim]and {trace.programs_left_out} more sub-agents[/dim]")
    return Group(*parts)


def _headline(spans: ProgramSpans, length_us: int) -> str:
    program = spans.trace.program
    state = (program.outcome.name if program.outcome else program.state.name).replace("_", " ").lower()
    if program.pause_cause is PauseCause.BUDGET:
        state += " (budget spent)"
    calls = f"{program.calls_completed + len(program.calls)} calls"
    return f"[bold]{escape(_title(program))}[/bold]: {state}, {calls} in {seconds(length_us)}"


def _title(program: Program) -> str:
    return f"{program.program_id} ({program.name})" if program.name else program.program_id


class _Axis:
    def __init__(self, begin_us: int, end_us: int, room: int) -> None:
        self._begin_us, self._length_us, self.room = begin_us, end_us - begin_us, room

    def labels(self) -> str:
        """Four times, at the left of their places."""
        line = ""
        for quarter in range(4):
            line = line.ljust(self.room * quarter // 4)[: self.room * quarter // 4]
            line += f"|{seconds(self._length_us * quarter // 4)}"
        return line[: self.room]

    def bar(self, spans: Sequence[Span]) -> Text:
        """One character a cell: the kind that takes most of it."""
        shares: list[dict[Kind, float]] = [{} for _ in range(self.room)]
        for span in spans:
            first = (span.begin_us - self._begin_us) * self.room / self._length_us
            last = (span.end_us - self._begin_us) * self.room / self._length_us
            for cell in range(int(first), min(self.room, int(last) + 1)):
                part = min(last, cell + 1) - max(first, cell)
                if part > 0:
                    shares[cell][span.kind] = shares[cell].get(span.kind, 0.0) + part
        text = Text()
        order = list(LOOKS)
        for cell_shares in shares:
            if not cell_shares:
                text.append(" ")
                continue
            kind = max(cell_shares, key=lambda each: (cell_shares[each], order.index(each)))
            text.append(LOOKS[kind][0], style=LOOKS[kind][1])
        return text


def _lines(spans: ProgramSpans, axis: _Axis, most_calls: int) -> list[RenderableType]:
    shown = spans.calls[-most_calls:] if most_calls else spans.calls
    left_out = len(spans.calls) - len(shown) + spans.trace.calls_left_out
    lines: list[RenderableType] = []
    if left_out:
        lines.append(f"[dim]{left_out} earlier calls are not shown[/dim]")
    if spans.tools:
        lines.append(_line("", "tools", axis.bar(spans.tools), sum(s.end_us - s.begin_us for s in spans.tools), ""))
    lines += [_call_line(call, axis) for call in shown]
    return lines


def _call_line(spans: CallSpans, axis: _Axis) -> Text:
    number = spans.call.call_id.rpartition(".")[2]
    return _line(
        number, spans.call.engine_id, axis.bar(spans.parts), spans.end_us - spans.begin_us, prefix_words(spans.call)
    )


def _line(number: str, engine: str, bar: Text, length_us: int, prefix: str) -> Text:
    line = Text(f"{number[-_NUMBER:]:>{_NUMBER}} {cut(engine, _ENGINE):<{_ENGINE}} ")
    line.append_text(bar)
    line.append(f" {seconds(length_us):>{_LENGTH}} {prefix[:_PREFIX]}".rstrip())
    return line


def _legend() -> Text:
    text = Text()
    for kind in _LEGEND:
        character, style = LOOKS[kind]
        text.append(f"{character} ", style=style)
        text.append(f"{kind.value}  ", style="dim")
    return text


# -- sums ----------------------------------------------------------------------------------------------------------

_SPLIT = (
    ("gateway_us", Kind.GATEWAY, PhaseKind.UNSPECIFIED),
    ("held_us", Kind.HELD, PhaseKind.HELD),
    ("queue_us", Kind.QUEUE, PhaseKind.QUEUE),
    ("prefill_us", Kind.PREFILL, PhaseKind.PREFILL),
    ("decode_us", Kind.DECODE, PhaseKind.DECODE),
    ("preempted_us", Kind.PREEMPTED, PhaseKind.PREEMPTED),
    ("tools_us", Kind.TOOLS, PhaseKind.UNSPECIFIED),
)


def split_of(program: Program) -> dict[Kind, int]:
    """Where the time of a program's calls went, those in flight included, and the time between them; microseconds."""
    times: TimeSplit = program.times
    live = [phase for call in program.calls for phase in call.phases]
    found = {}
    for name, kind, phase_kind in _SPLIT:
        in_flight = sum(phase.duration_us for phase in live if phase_kind and phase.kind is phase_kind)
        found[kind] = getattr(times, name) + in_flight
    return found


def time_table(program: Program) -> Group:
    """Where its time went, and what became of its prefixes. Calls at the same time count each."""
    split = split_of(program)
    total = sum(split.values())
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("left", "right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    for kind, us in split.items():
        if us >= SHOWN_US:
            character, style = LOOKS[kind]
            bar = Text(character * max(1, round(_SPLIT_BAR * us / total)), style=style)
            table.add_row(Text(kind.value, style="dim"), seconds(us), f"{us / total:.0%}", bar)
    nothing = f"[dim]no time yet; attained {seconds(received(program))}[/dim]"
    parts: list[RenderableType] = [table if total else nothing]
    if words := misses_line(program):
        parts.append(words)
    return Group(*parts)


_MISS_WORDS = {
    PrefixMiss.NONE: "hit",
    PrefixMiss.FIRST: "first",
    PrefixMiss.DIVERGED: "diverged",
    PrefixMiss.ANSWER_CHANGED: "answer changed",
    PrefixMiss.EVICTED: "evicted",
    PrefixMiss.OTHER_ENGINE: "other engine",
    PrefixMiss.SALT: "other salt",
    PrefixMiss.UNSPECIFIED: "not known",
}


def misses_of(program: Program) -> list[tuple[str, int]]:
    """What became of the prefixes of its finished calls, in words, and of how many."""
    return [(_MISS_WORDS[each.miss], each.calls) for each in program.prefix_misses]


def misses_line(program: Program) -> str:
    """The same in a line; "" before there are any."""
    lost = sum(each.lost_tokens for each in program.prefix_misses)
    words = ", ".join(f"{calls} {miss}" for miss, calls in misses_of(program))
    again = f"; {count(lost)} tokens computed again" if lost else ""
    return f"[dim]prefix[/dim]  {words}{again}" if words else ""
