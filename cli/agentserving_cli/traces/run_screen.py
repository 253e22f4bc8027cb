"""What `get` shows of a program: its account, where its time went, its calls, threads and sub-agents. Pure."""

from __future__ import annotations

from agentserving.client.traces import ProgramTrace, Trace
from agentserving.client.values import Program
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from agentserving_cli.screens import count, cut, plain_table, program_screen, seconds
from agentserving_cli.traces.spans import CallSpans, Kind, prefix_words, program_spans, time_to_first_token_us
from agentserving_cli.traces.timeline import split_of, time_table

# Rows of each table: the newest calls, the threads used last, the sub-agents opened first.
MOST_CALLS, MOST_THREADS, MOST_CHILDREN = 10, 10, 20
# Widths of ids on narrow screens; others are cut in the middle.
_ID, _ENGINE = 24, 12


def run_screen(trace: Trace, width: int) -> Group:
    """The program of a trace."""
    spans = program_spans(trace)[0]
    program, id_width = spans.trace.program, max(_ID, width - 56)
    parts: list[RenderableType] = [program_screen(program), "", time_table(program)]
    finished = [call for call in spans.calls if call.outcome]
    if finished:
        parts += ["", _finished_table(finished[-MOST_CALLS:], width)]
        if (left := len(finished) - MOST_CALLS + spans.trace.calls_left_out) > 0:
            parts.append(f"[dim]and {left} before them: agentserving trace {escape(program.program_id)}[/dim]")
    if [thread for thread in program.threads if thread.thread_id]:
        parts += ["", _threads_table(program, id_width)]
    if len(trace.programs) > 1:
        parts += ["", _children_table(trace.programs[1:], id_width, with_name=width >= 100)]
        if (left := len(trace.programs) - 1 - MOST_CHILDREN + trace.programs_left_out) > 0:
            parts.append(f"[dim]and {left} more[/dim]")
    return Group(*parts)


def _finished_table(calls: list[CallSpans], width: int) -> Table:
    """Newest last. TTFT: from the gateway to the first token. NEW: prompt tokens that were computed."""
    with_engine = width >= 90
    titles = ["CALL", "ENGINE", "TIME", "QUEUE", "TTFT", "NEW", "OUTPUT", "PREFIX", "OUTCOME"]
    if not with_engine:
        titles.remove("ENGINE")
    shown = plain_table(titles, ("CALL", "ENGINE", "PREFIX", "OUTCOME"))
    for spans in calls:
        call = spans.call
        first_us = time_to_first_token_us(spans)
        waited_us = sum(p.end_us - p.begin_us for p in spans.parts if p.kind in (Kind.QUEUE, Kind.HELD, Kind.PREEMPTED))
        cells = [
            call.call_id.rpartition(".")[2],
            *([escape(cut(call.engine_id, _ENGINE))] if with_engine else []),
            seconds(spans.end_us - spans.begin_us),
            seconds(waited_us),
            seconds(first_us) if first_us is not None else "-",
            count(call.prompt_tokens - call.cached_tokens),
            count(call.output_tokens),
            prefix_words(call) or "-",
            spans.outcome.name.lower(),
        ]
        shown.add_row(*cells)
    return shown


def _threads_table(program: Program, id_width: int) -> Table:
    shown = plain_table(("THREAD", "CALLS", "SERVICE", "WAIT"), ("THREAD",))
    for thread in program.threads[-MOST_THREADS:]:
        name = escape(cut(thread.thread_id, id_width)) or "[dim]no thread[/dim]"
        shown.add_row(name, str(thread.calls), seconds(thread.service_us), seconds(thread.wait_us))
    return shown


def _children_table(children: tuple[ProgramTrace, ...], id_width: int, *, with_name: bool) -> Table:
    shown = plain_table(("SUB-AGENT", "STATE", "DONE", "QUEUE", "COMPUTED", "TOOLS"), ("SUB-AGENT", "STATE"))
    for child in children[:MOST_CHILDREN]:
        program, split = child.program, split_of(child.program)
        name = f"{program.program_id} ({program.name})" if program.name and with_name else program.program_id
        state = program.outcome.name if program.outcome else program.state.name
        shown.add_row(
            escape(cut(name, id_width)),
            state.replace("_", " ").capitalize(),
            count(program.calls_completed),
            seconds(split[Kind.HELD] + split[Kind.QUEUE] + split[Kind.PREEMPTED]),
            seconds(split[Kind.PREFILL] + split[Kind.DECODE]),
            seconds(split[Kind.TOOLS]),
        )
    return shown
